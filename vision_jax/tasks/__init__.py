"""What is trained: each task owns its loss, its metrics and the preparation of its targets.

The loop knows a task by what every task has: `model_fields`, `frozen_shapes`, `train_loss`, `evaluate`, `metrics`,
`predict` and `better`.
"""

import dataclasses

from vision_jax.errors import unknown
from vision_jax.tasks.classification import Classification

TASKS = {"classification": Classification}


def make_task(config, class_names):
    """The task that a config's `task` group names.

    Raises:
      InputError: an unknown task or option.
    """
    options = {key: value for key, value in config.items() if key != "name"}
    if config.get("name") not in TASKS:
        raise unknown("task.name", config.get("name"), TASKS)
    task = TASKS[config["name"]]
    known = [field.name for field in dataclasses.fields(task) if field.name != "class_names"]
    for option in options:
        if option not in known:
            raise unknown(f"option of task {config['name']}:", option, known)
    return task(class_names=tuple(class_names), **options)
