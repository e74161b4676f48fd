#!/usr/bin/env bash
# Tells Ray that this machine ends soon, and waits until its hosts have finished what they hold.
#
#   drain-node.sh [SECONDS]     SECONDS: how long the machine has left (default 100)
#
# The pool then sends no new units here and takes back those that have not begun. Called by the preStop
# hook of cluster/kuberay.yaml and by the spot watch of ray-cluster.yaml, on the node that ends.
set -u
seconds=${1:-100}
ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "the machine ends" \
    --deadline-remaining-seconds "$seconds" || exit

# Ray names a worker process after the call it is in: ray::HostActor.run, ray::HostActor.score;
# between calls it is ray::HostActor or ray::IDLE. Three looks in a row without a call mean that it is over.
processes=${UDC_RAY_PROCESSES:-/proc}
busy='^ray::([A-Za-z_]+\.[a-z]|[a-z])'
quiet=0 end=$((SECONDS + seconds))
while ((quiet < 3 && SECONDS < end)); do
    if cat "$processes"/[0-9]*/cmdline 2>/dev/null | tr '\0' '\n' | grep --quiet --extended-regexp "$busy"; then
        quiet=0
    else
        quiet=$((quiet + 1))
    fi
    sleep 1
done
