"""What is trained: each task owns its loss, its metrics and the preparation of its targets.

The loop knows a task by what every task has: `model_fields`, `frozen_shapes`, `train_loss`, `evaluate`, `metrics`,
`metric_names` and `predict`.
"""

import dataclasses

from vision_jax.errors import InputError, unknown
from vision_jax.tasks.classification import Classification

TASKS = {"classification": Classification}


def make_task(config, class_names=None):
    """The task that a config's `task` group names.

    Args:
      config: the group: a name and the task's options.
      class_names: the data's; None takes those that a resolved config tells.

    Raises:
      InputError: an unknown task or option, other classes than the config's.
    """
    options = {key: value for key, value in config.items() if key not in ("name", "class_names")}
    told = config.get("class_names")
    if class_names is None and told is None:
        raise InputError("config.task tells no class_names: is this the config.json of a run?")
    if None not in (class_names, told) and tuple(class_names) != tuple(told):
        counts = f"{len(class_names)} classes, the run's config.task.class_names {len(told)}"
        raise InputError(f"the data has {counts}, or others")
    class_names = told if class_names is None else class_names
    if config.get("name") not in TASKS:
        raise unknown("task.name", config.get("name"), TASKS)
    task = TASKS[config["name"]]
    known = [field.name for field in dataclasses.fields(task) if field.name != "class_names"]
    for option in options:
        if option not in known:
            raise unknown(f"option of task {config['name']}:", option, known)
    return task(class_names=tuple(class_names), **options)
