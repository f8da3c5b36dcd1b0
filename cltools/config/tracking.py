"""The programs for following experiments that training can report to. Imports quickly."""

from typing import Literal

Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow"]
