"""What a model is for, and what follows for judging it; attacks, hosts, records and reports serve every task."""

from __future__ import annotations

from udc_ray.models.base import TaskName
from udc_ray.tasks.base import Goal, Reading, Scores, Task
from udc_ray.tasks.classification import Classification
from udc_ray.tasks.restoration import Restoration

__all__ = ["TASKS", "Goal", "Reading", "Scores", "Task", "get_task", "task_of"]

TASKS: dict[TaskName, Task] = {"restoration": Restoration(), "classification": Classification()}


def get_task(name: TaskName) -> Task:
    """The task that a model's descriptor names."""
    return TASKS[name]


def task_of(objective: str) -> Task:
    """The task whose answers an objective judges; restoration where the name is another version's."""
    return next((task for task in TASKS.values() if objective in task.objectives), TASKS["restoration"])
