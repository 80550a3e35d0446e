"""Run alone: a W&B run that goes on where one of its name did, and sends an alert, always of the same news.

python -m tests.sinks.alert_run FOLDER TEXT
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import wandb

from slt_callbacks.sinks.alerts import News, send_alert

if __name__ == "__main__":
    _, folder, text = sys.argv
    run = wandb.init(project="tests", dir=folder, id="same", resume="allow")
    send_alert([SimpleNamespace(experiment=run)], "title", text, News("a jump", 3))
    run.finish()
