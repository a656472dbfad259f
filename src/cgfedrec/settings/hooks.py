"""What a callback or a data module may hope for: hooks that are called here, and what Lightning's are called."""

from __future__ import annotations

from collections.abc import Iterator

from lightning.pytorch import Callback, LightningDataModule

from cgfedrec.errors import nearest

HOOKS = ("on_federation_start", "on_cohort_end", "on_round_end", "on_federation_end")
"""Those that are called, each with the loop, and `on_cohort_end` with the users, `[clients]`, too."""
_START, _COHORT, _ROUND, _END = HOOKS
_OURS = {
    "setup": _START,
    "on_fit_start": _START,
    "on_sanity_check_start": _START,
    "on_sanity_check_end": _START,
    "on_train_start": _START,
    "on_train_epoch_end": _ROUND,
    "on_validation_epoch_end": _ROUND,
    "on_validation_end": _ROUND,
    "on_train_batch_end": _COHORT,
    "on_train_end": _END,
    "on_fit_end": _END,
    "on_exception": _END,
    "teardown": _END,
}
"""The hook here that is called where one of Lightning's would be."""
_STATE = ("state_dict", "load_state_dict", "on_save_checkpoint", "on_load_checkpoint")
_INSTEAD = {
    "EarlyStopping": "training stops by itself after loop.patience evaluations without a better loop.monitor",
    "ModelCheckpoint": "checkpoints/best.ckpt is of the best loop.monitor, and last.ckpt is written every "
    "loop.checkpoint_every rounds",
    "ProgressBar": "a run shows its rounds and clients by itself",
}
"""What is here in place of some of Lightning's own callbacks."""


_LOADERS = tuple(f"{kind}_dataloader" for kind in ("train", "val", "test", "predict"))
_TRANSFERS = ("transfer_batch_to_device", "on_before_batch_transfer", "on_after_batch_transfer")
_OF_DATA = {
    "prepare_data": "write read, which returns all interactions",
    "teardown": "write on_federation_end of a callback",
    "on_exception": "write on_federation_end of a callback",
    "state_dict": "a checkpoint keeps nothing of a data module",
    "load_state_dict": "a checkpoint keeps nothing of a data module",
    **dict.fromkeys((*_LOADERS, *_TRANSFERS), "clients draw their batches by themselves"),
}
"""The hooks of Lightning's data modules that are not called, and what is here instead. `setup` is called."""


def unheeded_data(data: LightningDataModule) -> Iterator[str]:
    """What a data module hopes for in vain, each a problem that says what is here instead."""
    kind = type(data)
    for hook, instead in _OF_DATA.items():
        if getattr(kind, hook) is not getattr(LightningDataModule, hook):
            yield f"data: {kind.__module__}.{kind.__qualname__}.{hook} is never called here; {instead}"


def unheeded(callback: object, place: str = "callbacks") -> Iterator[str]:
    """What a callback hopes for in vain, each a problem that names the hook of ours, if there is one.

    Args:
        callback: One, or the class of one that is yet to be made.
        place: Where it is listed.
    """
    kind = callback if isinstance(callback, type) else type(callback)
    name = f"{place}: {kind.__module__}.{kind.__qualname__}"
    for base in kind.__mro__:
        if base.__name__ in _INSTEAD and base.__module__.startswith(("lightning.", "pytorch_lightning.")):
            yield f"{name} is not called here: {_INSTEAD[base.__name__]}"
            return
    hoped = [hook for hook in dir(callback) if _is_hook(kind, hook)]
    for hook in hoped:
        if hook not in HOOKS:
            yield f"{name}.{hook} is never called here{_told(hook)}"
    if not hoped:
        yield f"{name} has none of the hooks that are called: {', '.join(HOOKS)}"


def _is_hook(kind: type, name: str) -> bool:
    """Whether what has this name is a hook of the class's own, and not the empty one of Lightning's `Callback`."""
    if not name.startswith("on_") and name not in _known():
        return False
    own = getattr(kind, name, None)  # none where an object has a hook that its class lacks
    return own is None or own is not getattr(Callback, name, None)


def _known() -> set[str]:
    """Lightning's hooks that do not begin with ``on_``."""
    return {*_OURS, *_STATE}


def _told(hook: str) -> str:
    """What to say of a hook that is never called."""
    if hook in _OURS:
        return f"; write {_OURS[hook]}, which is at the same moment"
    if hook in _STATE:
        return "; a checkpoint keeps nothing of callbacks"
    if hasattr(Callback, hook):
        return f"; the hooks here are {', '.join(HOOKS)}"
    return f"{nearest(hook, HOOKS)}; the hooks here are {', '.join(HOOKS)}"
