"""Metered targets: every send is accounted for before it happens, and a budget is never exceeded.

A metered target belongs to somebody who counts: an HTTP endpoint, or a model that is marked so. Its
account is the send. ``ledger`` keeps it in one SQLite file on the disk of the process that sends,
``leases`` mirrors it into the run's storage, ``account`` says what was spent.

Exactly-once towards a target that does not know our keys cannot be had: after a crash a query that was
sent and not answered may or may not have been counted there. It is `unknown`, counts as spent, and
where its answer is still wanted it is sent again and charged again; both are shown.
"""
