"""Reading weights: every tensor of a file is used, or on a short list of names that may be left out, or refused.

A file that loads half is worse than one that does not load. Nothing of a file is ever executed: torch's own restricted
reader comes first (``weights_only=True``; needs torch >= 2.10, where its last known memory bug, CVE-2026-24747, is mended),
and where a file also holds objects of some framework, a reader that knows tensors and tables alone and puts an inert stub
for everything else.
"""

import _compat_pickle
import hashlib
import os
import pickle
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import yaml

from fpbench.errors import InputError, MissingError

if TYPE_CHECKING:
    import torch

PLAIN = ("state_dict", "model", "module")
WRAPPERS = (
    *PLAIN,
    "teacher",
    "student",
    "model_ema",
    "state_dict_ema",
    "ema",
)  # the first that is there, unless the prefix says
HEADS = re.compile(r"^(module\.|_orig_mod\.)+|(?<=\.)_orig_mod\.")  # of torch's DataParallel and compile
KNOWN = {
    "collections.OrderedDict", "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter",
}  # fmt: skip
HARMLESS = {"_codecs", "argparse", "codecs", "collections", "copyreg", "datetime", "decimal", "enum", "functools", "operator",
            "pathlib", "random", "types", "typing", "uuid", "builtins"}  # fmt: skip
COMMANDS = {"eval", "exec", "compile", "open", "__import__", "input", "breakpoint"}  # of builtins
NAMES = yaml.safe_load(Path(__file__).with_name("names.yaml").read_text())  # of tensors in files
DRAWN = 65_521  # numbers that ``repeated`` draws of a parameter; a prime, so that no two rows are equal


@dataclass(frozen=True)
class Layout:
    """How a file names the tensors of a module, and which of its own it may keep."""

    source: Callable[[str], str]  # name in the module -> name in the file; "a+b": the rows of a, then those of b
    prefix: str = ""  # names without it belong to other parts of the file
    left_out: tuple[str, ...] = ()  # patterns of names in the file that this module does not use
    zero: tuple[str, ...] = ()  # the same, provided that every value is 0
    shapes: dict = field(default_factory=dict)  # of tensors left out, where they tell this model from a sibling
    fresh: tuple[str, ...] = ()  # patterns of names in the module that no file holds
    adapt: Callable[[str, "torch.Tensor", "torch.Size"], "torch.Tensor"] = lambda name, tensor, shape: tensor


def renamed(*rules: tuple[str, str]) -> Callable[[str], str]:
    """Return a function that applies regular-expression replacements in order."""

    def source(name: str) -> str:
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        return name

    return source


OWN = Layout(renamed((r"^trunk\.", "")))  # of files that our pretraining writes


def is_own(module: "torch.nn.Module", tensors: dict[str, "torch.Tensor"]) -> bool:
    """Return whether a file holds exactly the tensors of a module, named and shaped as OWN has it."""
    wanted = {OWN.source(name): tensor.shape for name, tensor in module.state_dict().items()}
    return wanted == {name: tensor.shape for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Content:
    """The tensors of a file, and what was done to their names."""

    tensors: dict[str, "torch.Tensor"]
    ignored: tuple[str, ...] = ()  # one entry for all outside the prefix
    notes: tuple[str, ...] = ()  # which of several sets of weights


def read(path: Path, prefix: str = "") -> dict[str, "torch.Tensor"]:
    """Return the tensors of a file, see ``opened``."""
    return opened(path, prefix).tensors


def opened(path: Path, prefix: str = "") -> Content:
    """Return the tensors of a .safetensors or torch file, wrappers and leading ``module.`` and ``_orig_mod.`` taken off.

    A torch file is mapped, not read: only the tensors that are used come into memory.

    Parameters
    ----------
    prefix
        Of the names that are meant, taken off; it may begin with a wrapper (``student.backbone``).

    Raises
    ------
    InputError
        Other things than tensors, two tensors of one name, or none below the prefix.
    MissingError
        No such file.
    """
    if not os.path.isfile(path):
        raise MissingError(f"expected a weights file at {path}, found nothing: check the path in the study")
    content, sought = load(path), f"{prefix.rstrip('.')}." if prefix else ""
    wrappers: list[str] = []
    while (wrapper := _wrapper(content, sought)) and len(wrappers) < len(WRAPPERS):  # a table may hold itself
        content, sought = content[wrapper], sought.removeprefix(f"{wrapper}.")
        wrappers.append(wrapper)
    if not isinstance(content, dict) or not content or not all(map(_is_tensor, content.values())):
        raise InputError(f"{path}: expected a table of named tensors, found {_describe(content)}")
    tensors = {HEADS.sub("", str(name)): tensor for name, tensor in content.items()}
    if len(tensors) < len(content):
        both = [name for name in map(str, content) if HEADS.sub("", name) != name]
        twice = f"found {', '.join(both[:3])} and the same without it: which is meant?"
        raise InputError(f"{path}: expected one tensor of each name, `module.` and `_orig_mod.` taken off, {twice}")
    head = HEADS.sub("", sought)
    inside = {name.removeprefix(head): tensor for name, tensor in tensors.items() if name.startswith(head)}
    if not inside:
        roots = sorted({name.split(".")[0] for name in tensors})
        raise InputError(
            f"{path}: expected names below prefix={prefix!r}, found {', '.join(roots[:8])}: correct the prefix"
        )
    outside = [f"{len(tensors) - len(inside)} tensors outside {prefix}"] if len(inside) < len(tensors) else []
    taken = [f"weights of {wrapper!r} in the file" for wrapper in wrappers if wrapper not in PLAIN]
    return Content(inside, tuple(outside), tuple(taken))


def _wrapper(content: object, prefix: str) -> str:
    """Return under which name the tensors lie: what the prefix begins with, or a known one; empty: no wrapper."""
    tables = [name for name, value in content.items() if isinstance(value, dict)] if isinstance(content, dict) else []
    asked = [name for name in tables if isinstance(name, str) and prefix.startswith(f"{name}.")]
    return next(iter((*asked, *(name for name in WRAPPERS if name in tables))), "")


def _is_tensor(value: object) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _describe(content: object) -> str:
    if not isinstance(content, dict):
        return f"an object of type {type(content).__name__}"
    others = [str(name) for name, value in content.items() if type(value).__name__ not in ("Tensor", "Parameter")]
    return f"other things too: {', '.join(others[:6])}" if others else "an empty one"


def load(path: Path, mapped: bool = True) -> Any:
    """Return what a file holds, by the readers that execute nothing; InputError if they cannot."""
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        zipped = zipfile.is_zipfile(path)
        try:
            return torch.load(path, "cpu", weights_only=True, mmap=mapped and zipped)
        except pickle.UnpicklingError:
            if not zipped or any(name.endswith("/constants.pkl") for name in zipfile.ZipFile(path).namelist()):
                raise  # the reader below is for plain files alone: TorchScript is a program
            return torch.load(path, "cpu", pickle_module=RESTRICTED, weights_only=False, mmap=True)
    except Exception as error:  # a damaged pickle can raise anything
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: {_diagnose(path)} ({first})") from None


class _Stub:
    """Stands for an object of some framework; takes whatever it is given and does nothing."""

    def _nothing(self, *args: object, **kwargs: object) -> None:
        pass

    __init__ = __setstate__ = __setitem__ = append = extend = add = _nothing


class _Unpickler(pickle._Unpickler):  # the one in Python: that in C makes room for any memo number
    """Knows tensors and tables; everything else becomes a stub; what could run a command is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a class by its name, or a stub."""
        # protocol 2 writes Python 2's names: commands.getoutput, __builtin__.eval
        module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
        module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        top = module.split(".")[0]
        if (top in sys.stdlib_module_names and top not in HARMLESS) or (top == "builtins" and name in COMMANDS):
            danger = "which can run commands and belongs in no weights file"
            raise pickle.UnpicklingError(f"it names {module}.{name}, {danger}")
        return super().find_class(module, name) if f"{module}.{name}" in KNOWN else _Stub


RESTRICTED = SimpleNamespace(__name__="restricted", Unpickler=_Unpickler)  # torch.load takes it for the module pickle


def _diagnose(path: Path) -> str:
    with open(path, "rb") as handle:
        head = handle.read(512).lstrip().lower()
    if not head:
        return "the file is empty: is the download complete?"
    if head.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer, not the file: fetch it with 'git lfs pull'"
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "this is a web page, not the file: the download asked for a confirmation or a login; fetch it by hand"
    if head.startswith(b"pk") and not zipfile.is_zipfile(path):
        return "the file is truncated (a torch file without its end): is the download complete?"
    if path.suffix == ".safetensors":
        return "not a whole safetensors file: is it truncated, is the download complete?"
    return "refused and not unpickled, nothing of it was executed: not a plain weights file, or a damaged one"


def unfilled() -> AbstractContextManager:
    """Return a context in which parameters are given no random numbers: for a network of which a file fills them all."""
    from unittest.mock import patch

    from torch.nn import Parameter

    steps = ("uniform_", "normal_", "erfinv_", "mul_", "add_", "clamp_")  # what `torch.nn.init` does to a tensor
    nothing: dict[str, Any] = dict.fromkeys(steps, lambda own, *_, **__: own)
    return patch.multiple(Parameter, **nothing)


def repeated() -> AbstractContextManager:
    """Return a context in which the random numbers of large parameters repeat: for a network that is built to be timed.

    To draw a vision transformer's 300 million takes longer than its forward pass. The first DRAWN are drawn as ever and the others are
    copies of them, so that all memory is written, with values as large and as different as those of any network.
    """
    from unittest.mock import patch

    from torch import Tensor
    from torch.nn import Parameter

    def shortened(name: str) -> Callable[..., Any]:
        step = getattr(Tensor, name)

        def work(own: Any, *given: Any, **named: Any) -> Any:
            first, *others = own.detach().flatten().split(DRAWN)
            step(first, *given, **named)
            for part in others:
                part.copy_(first[: len(part)])
            return own

        return work

    steps: dict[str, Any] = {name: shortened(name) for name in ("uniform_", "normal_", "erfinv_")}
    return patch.multiple(Parameter, **steps)


def fill(
    module: "torch.nn.Module", tensors: dict, layouts: tuple[Layout, ...], ignore: Iterable[str], what: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Put ``tensors`` into ``module`` and account for every one.

    Parameters
    ----------
    module
        Its tensors are replaced by those of the file, without a copy where the type is the same.
    tensors
        Of the file, by the file's names.
    layouts
        The known ones; the one that explains most of the file is taken.
    ignore
        Patterns that the user leaves out, of the file or of the module, in the file's names.
    what
        The file and the encoder, for the message.

    Returns
    -------
    tuple of str
        The names in the file that were left out; one entry for all outside the layout's prefix.
    tuple of str
        Position tables that were resized, one line each.

    Raises
    ------
    InputError
        A tensor is missing, unexpected or of another shape; names are the file's.
    """
    wanted = {name: (tensor.shape, tensor.dtype) for name, tensor in module.state_dict().items()}
    explained = [sum(part in tensors for name in wanted for part in one.source(name).split("+")) for one in layouts]
    layout, optional = layouts[explained.index(max(explained))], (*ignore, "*num_batches_tracked")
    sources = {name: layout.source(name).split("+") for name in wanted if not matches(name, layout.fresh)}
    consumed = {part for parts in sources.values() for part in parts}
    missing = [part for parts in sources.values() for part in parts if not (part in tensors or matches(part, optional))]
    extra = [name for name in tensors if name not in consumed and name.startswith(layout.prefix)]
    left_out, empty = (*layout.left_out, *ignore), layout.zero
    allowed = [n for n in extra if matches(n, left_out) or (matches(n, empty) and not tensors[n].any())]
    unexpected = [name for name in extra if name not in allowed]
    found = {name: parts for name, parts in sources.items() if all(part in tensors for part in parts)}
    filled, shapes, notes = _adapted(found, tensors, layout, wanted)
    if missing or unexpected or shapes:
        raise InputError(complaint(what, sorted(set(missing)), unexpected, shapes, tensors, consumed))
    module.load_state_dict(filled, strict=False, assign=True)
    outside = sum(not name.startswith(layout.prefix) for name in tensors)
    return (*allowed, *([f"{outside} tensors outside {layout.prefix}"] if outside else [])), notes


def _adapted(found: dict, tensors: dict, layout: Layout, wanted: dict) -> tuple[dict, list[str], tuple[str, ...]]:
    """Return the tensors under the module's names, what is wrong with their shapes, and which tables were resized."""
    import torch

    from fpbench.encoders.tables import is_table, told

    filled, used = {}, set()
    notes: dict[str, list[str]] = {}
    known = [(name, tuple(tensors[name].shape), shape) for name, shape in layout.shapes.items() if name in tensors]
    wrong = [f"{name} {one} where this model's file has {two}" for name, one, two in known if one != two]
    for name, parts in found.items():
        shape, dtype = wanted[name]
        tensor = tensors[parts[0]] if len(parts) == 1 else torch.cat([tensors[part] for part in parts])
        adapted = layout.adapt(name, tensor, shape)
        if adapted.shape != shape:
            why = ", and that is no other square grid" if is_table(name) else ""
            wrong.append(f"{'+'.join(parts)} {tuple(tensor.shape)} where the model has {tuple(shape)}{why}")
        elif tensor.numel() != adapted.numel():
            notes.setdefault(told(name, tensor.shape, adapted.shape), []).append(parts[0])
        filled[name] = adapted.to(dtype, copy=parts[0] in used).contiguous()  # two parameters may not share memory
        used.add(parts[0])
    more = {text: f" and {len(names) - 1} more" if names[1:] else "" for text, names in notes.items()}
    return filled, wrong, tuple(f"{names[0]}{more[text]}: {text}" for text, names in notes.items())


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a name fits one of the shell-style patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def complaint(
    what: str,
    missing: list[str],
    unexpected: list[str],
    shapes: list[str],
    names: Iterable[str] = (),
    wanted: Iterable[str] = (),
) -> str:
    """Return what is wrong, what such a file usually is, and what to do: a prefix that fits, or how to overrule it.

    ``names`` are those of the file, ``wanted`` the model's, in the file's manner.
    """
    lines = [f"{what}: these weights do not fit the model; nothing was loaded."]
    found = {"missing from the file": missing, "not in the model": unexpected, "another shape": shapes}
    for title, listed in found.items():
        more = f" and {len(listed) - 6} more" if len(listed) > 6 else ""
        lines += [f"  {title} ({len(listed)}): {', '.join(listed[:6])}{more}"] if listed else []
    usual = [text for pattern, text in NAMES["usually"] if any(fnmatchcase(name, pattern) for name in unexpected)]
    lines += [f"  Such a file is usually {text}." for text in usual[:1]]
    wanted, names = {*wanted}, [*names]
    there = len(wanted.intersection(names))
    prefix, below = root(names, wanted)
    if below > there:
        count = "All" if below == len(wanted) else f"{below} of {len(wanted)}"
        lines.append(f"{count} of the model's tensors are in the file below another name: write prefix={prefix!r}")
    elif wanted and there < len(wanted) / 2:
        lines.append(f"The file has {there} of the model's {len(wanted)} tensors: it is another model's")
    elif (missing or unexpected) and not shapes:
        lines.append(f"If you know that this is right, overrule with ignore={[*missing, *unexpected]}")
    return "\n".join(lines)


def root(names: Iterable[str], wanted: set[str]) -> tuple[str, int]:
    """Return the prefix below which most of the wanted names stand in a file, and how many ("", 0: none does)."""
    dots = ((name, match.end()) for name in names for match in re.finditer(r"\.", name))
    found = Counter(name[:end] for name, end in dots if name[end:] in wanted)
    return next(iter(found.most_common(1)), ("", 0))


def tensors_sha256(module: "torch.nn.Module") -> str:
    """Return the SHA-256 (hex) over name, type, shape and bytes of all parameters and buffers."""
    import torch

    total = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()
