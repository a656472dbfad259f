"""Runs of one comparison or search as one group in Weights & Biases, where they are logged there."""

from __future__ import annotations

from typing import Any

OURS = "cgfedrec.run.loggers.WandbLogger"


def grouped(config: dict[str, Any], group: str, job_type: str) -> dict[str, Any]:
    """The settings of a run, with a group and a job type for its logger unless they name others.

    Args:
        config: All settings.
        group: Of all runs that belong together.
        job_type: What these runs are for.
    """
    logger = config.get("logger")
    if not isinstance(logger, dict) or logger.get("class_path") != OURS:
        return config
    args = dict(logger.get("init_args") or {})
    args["group"] = args.get("group") or group
    if args.get("job_type", "fit") == "fit":
        args["job_type"] = job_type
    return config | {"logger": {"class_path": OURS, "init_args": args}}
