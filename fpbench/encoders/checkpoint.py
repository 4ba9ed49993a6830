"""Reading weights: every tensor of a file is used, or on a short list of names that may be left out, or refused.

A file that loads half is worse than one that does not load. Nothing is unpickled but tensors and plain containers
(``weights_only=True``; needs torch >= 2.10, where its last known memory bug, CVE-2026-24747, is mended).
"""

import hashlib
import pickle
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from fpbench.errors import InputError, MissingError

if TYPE_CHECKING:
    import torch

WRAPPERS = ("state_dict", "model", "module")


def read(path: Path) -> dict[str, "torch.Tensor"]:
    """Return the tensors of a .safetensors or torch file, wrappers and a leading ``module.`` taken off."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise MissingError(f"expected a weights file at {path}, found nothing: check the path in the study")
    _refuse_stand_ins(path)
    try:
        content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError, LookupError) as error:
        raise InputError(f"{path}: not a readable weights file; is the download complete? ({error})") from None
    except pickle.UnpicklingError as error:
        raise InputError(f"{path}: holds more than tensors and was not unpickled ({error})") from None
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in content.values()):
        raise InputError(f"{path}: expected a table of named tensors, found {type(content).__name__}")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def _refuse_stand_ins(path: Path) -> None:
    """Name the files that people get in place of weights."""
    with open(path, "rb") as handle:
        head = handle.read(200).lstrip().lower()
    if not head:
        raise InputError(f"{path}: the file is empty; is the download complete?")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: this is a Git LFS pointer, not the file: fetch it with 'git lfs pull'")
    if head.startswith((b"<!doctype", b"<html")):
        raise InputError(
            f"{path}: this is a web page, not the file: the download asked for a confirmation; fetch it by hand"
        )


def fill(
    module: "torch.nn.Module", tensors: dict, allowed: Iterable[str], ignore: Iterable[str], what: str
) -> tuple[str, ...]:
    """Copy ``tensors`` into ``module`` and account for every one.

    Parameters
    ----------
    allowed
        Patterns of names in the file that this architecture leaves out.
    ignore
        Patterns that the user leaves out, of either side.

    Returns
    -------
    tuple of str
        The names in the file that were left out.

    Raises
    ------
    InputError
        A tensor is missing, unexpected or of another shape.
    """
    own = module.state_dict()
    missing = [
        name
        for name in own
        if name not in tensors and not _matches(name, ignore) and not name.endswith("num_batches_tracked")
    ]
    extra = [name for name in tensors if name not in own]
    left_out = tuple(name for name in extra if _matches(name, allowed) or _matches(name, ignore))
    unexpected = [name for name in extra if name not in left_out]
    shapes = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if missing or unexpected or shapes:
        raise InputError(_complaint(what, missing, unexpected, shapes))
    used = {name: tensor.to(own[name].dtype) for name, tensor in tensors.items() if name in own}
    module.load_state_dict({**own, **used})
    return left_out


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _complaint(what: str, missing: list[str], unexpected: list[str], shapes: list[str]) -> str:
    def some(names: list[str]) -> str:
        return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")

    lines = [f"{what}: these weights do not fit the model; nothing was loaded."]
    lines += [f"  missing from the file ({len(missing)}): {some(missing)}"] if missing else []
    lines += [f"  not in the model ({len(unexpected)}): {some(unexpected)}"] if unexpected else []
    lines += [f"  another shape ({len(shapes)}): {some(shapes)}"] if shapes else []
    if (missing or unexpected) and not shapes:
        lines.append(f"If you know that this is right, overrule with ignore={[*missing, *unexpected]}")
    return "\n".join(lines)


def tensors_sha256(module: "torch.nn.Module") -> str:
    """Return the SHA-256 (hex) over name, type, shape and bytes of all parameters and buffers."""
    import torch

    total = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()
