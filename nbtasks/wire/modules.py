"""Modules of the user's own: which they are, what they hold on disk, and workers that keep up.

A local module is a Python file outside the standard library and site-packages: `helper.py` beside
the notebook, or a package that is installed as editable. A task that refers to one runs it as it
is on disk at the call:

    client   `stamps(names)`: the local modules of these names, and all local ones that they import,
             each with its path and a digest of its text. They travel in the definition, so that
             an edited file makes a new definition. `Files` notices the edit by stat.
    worker   `prepare(folders, stamps)`: when any of them was imported from another text, *all*
             local modules are dropped from `sys.modules`, because those not named may hold objects
             of the stale one; they are imported again when they are next asked for.

What a worker imports goes through `_Loader`, which notes the digest of the text that it compiled,
and does not believe a `.pyc` that was written within two seconds of an edit: Python itself compares
whole seconds and the size, and takes an edit of the same length for none.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import site
import sys
import sysconfig
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import cache_from_source, spec_from_file_location
from operator import attrgetter
from types import CodeType, ModuleType
from typing import Final, NamedTuple

#: Within so many nanoseconds of an edit, a second one may leave the same time on the file.
SETTLED: Final = 2_000_000_000
#: Local modules that are followed at most.
MOST_MODULES: Final = 5_000
#: Nanoseconds for which one look at the files holds: less than an edit takes. In a row of calls
#: with less than that between any two, nobody has edited between them, and it holds for a `ROW`.
GLANCE: Final = 50_000
ROW: Final = 500_000
#: The part of a loop of calls (one in so many) that looking at many files may take.
SHARE: Final = 4
#: Nanoseconds that pass at least between a call and its run, in another process.
ON_THE_WAY: Final = 200_000


class Stamp(NamedTuple):
    """A local module as it is on disk."""

    name: str
    path: str
    is_package: bool
    #: Of its text; empty when it cannot be read.
    digest: bytes


# ------------------------------------------------------------------------------ what is local


@cache
def _foreign_folders() -> tuple[str, ...]:
    """Return the folders of the standard library, of installed packages, and our own."""
    paths = sysconfig.get_paths()
    folders = {paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    with suppress(AttributeError):  # not in every embedded interpreter
        folders.update(site.getsitepackages())
        folders.add(site.getusersitepackages())
    folders.add(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    folders |= {os.path.realpath(folder) for folder in folders}
    return tuple(sorted(folder.rstrip(os.sep) + os.sep for folder in folders))


@cache
def is_local(path: str | None) -> bool:
    """Whether a module of this file is the user's own."""
    if not path or not path.endswith(".py"):
        return False
    foreign = _foreign_folders()
    return not (
        os.path.abspath(path).startswith(foreign) or os.path.realpath(path).startswith(foreign)
    )


def is_local_module(name: str | None) -> bool:
    """Whether a module that is loaded here is the user's own."""
    return name is not None and name != "__main__" and _file_of(sys.modules.get(name)) is not None


def _file_of(module: ModuleType | None) -> str | None:
    """Return the file of a loaded local module; None for any other."""
    path = getattr(module, "__file__", None)
    return os.path.abspath(path) if isinstance(path, str) and is_local(path) else None


#: Stands in a list of folders for those of installed packages.
INSTALLED: Final = ""


def folders() -> list[str]:
    """Return the entries of `sys.path` where modules of the user's own may lie, in order.

    Those of the standard library and of installed packages are one entry, `INSTALLED`.
    """
    foreign = _foreign_folders()
    found: dict[str, None] = {}
    for entry in sys.path:
        folder = os.path.abspath(entry)
        is_foreign = folder.endswith(".zip") or (folder + os.sep).startswith(foreign)
        found[INSTALLED if is_foreign else folder] = None
    return list(found)


# -------------------------------------------------------------------------- what is on the disk


class _File(NamedTuple):
    """What was read of a file."""

    signature: tuple[int, int, int]
    #: Whether every later edit must change the signature.
    settled: bool
    digest: bytes
    text: str


_files: Final[dict[str, _File]] = {}


#: What an edit changes of a file's status.
_signature: Final = attrgetter("st_mtime_ns", "st_size", "st_ino")


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _read(path: str) -> _File | None:
    """Return what is in the file, or None when it cannot be read."""
    known = _files.get(path)
    try:
        signature = _signature(os.stat(path))
        if known is not None and known.settled and known.signature == signature:
            return known
        settled = time.time_ns() - signature[0] > SETTLED
        with open(path, "rb") as file:
            data = file.read()
    except OSError:
        _files.pop(path, None)
        return None
    read = _File(signature, settled, _digest(data), data.decode("utf-8", "replace"))
    _files[path] = read
    return read


class Files:
    """Says whether local modules are still as they were; cheap enough for every call."""

    def __init__(self, stamps: Iterable[Stamp]) -> None:
        stamps = tuple(stamps)
        self._paths = [stamp.path for stamp in stamps]
        self._digests = [stamp.digest for stamp in stamps]
        #: While these hold, nothing needs to be read; None: not all files are settled.
        self._signatures: list[tuple[int, int, int]] | None = None
        self._not_before = 0
        self._in_row_not_before = 0
        self._asked_at = 0

    def unchanged(self) -> bool:
        """Return whether all texts are the same.

        It is not looked again at once: to ask for a file takes as long as a tenth of a call, and
        lets go of the interpreter. With hundreds of files it takes at most a quarter of the time of
        a loop of calls. What counts is the processor's time: on a busy machine one look may take
        long, and an edit right after it must be seen all the same. Files that have just been edited
        are read, which takes longer, and may be edited again: they are looked at each time.
        """
        if not self._paths:
            return True
        instant = time.perf_counter_ns()
        in_row = instant - self._asked_at < GLANCE
        self._asked_at = instant
        if instant < (self._in_row_not_before if in_row else self._not_before):
            return True
        began = time.thread_time_ns()
        same = self._all_same()
        # Whoever asks again after a change is not told otherwise.
        if same and self._signatures is not None:
            taken = time.thread_time_ns() - began
            looked_at = self._asked_at = time.perf_counter_ns()
            self._not_before = looked_at + max(taken * (SHARE - 1), GLANCE)
            self._in_row_not_before = max(self._not_before, looked_at + ROW)
        return same

    def _all_same(self) -> bool:
        known = self._signatures
        try:
            if known is not None and known == list(map(_signature, map(os.stat, self._paths))):
                return True
        except OSError:  # one is gone
            pass
        found = [_read(path) for path in self._paths]
        if self._digests != [read.digest if read else b"" for read in found]:
            return False
        settled = [read.signature for read in found if read is not None and read.settled]
        self._signatures = settled if len(settled) == len(found) else None
        return True


# ------------------------------------------------------------------------- which imports which


def stamps(names: Iterable[str]) -> list[Stamp]:
    """Return the local modules among these, and all that they import, by name.

    Parameters
    ----------
    names
        Dotted names of modules; those that are not local, or do not exist, are passed over.
    """
    found: dict[str, Stamp | None] = {}
    waiting = [name for full in names for name in _with_parents(full)]
    while waiting and len(found) < MOST_MODULES:
        name = waiting.pop()
        if name in found or name == "__main__":
            continue
        place = _locate(name)
        if place is None:
            found[name] = None
            continue
        path, is_package = place
        read = _read(path)
        found[name] = Stamp(name, path, is_package, read.digest if read else b"")
        if read is not None:
            package = name if is_package else name.rpartition(".")[0]
            for imported in _imports(read.digest, read.text):
                waiting.extend(_with_parents(_absolute(imported, package)))
    return [stamp for _, stamp in sorted(found.items()) if stamp is not None]


def _with_parents(name: str) -> Iterator[str]:
    while name:
        yield name
        name = name.rpartition(".")[0]


def _absolute(name: str, package: str) -> str:
    dots = len(name) - len(name.lstrip("."))
    if not dots:
        return name
    parts = package.split(".") if package else []
    parts = parts[: len(parts) - dots + 1]
    return ".".join([*parts, *filter(None, [name.lstrip(".")])])


_IMPORT: Final = re.compile(
    r"(?:^|[;:])[ \t]*(?:"
    r"from[ \t]+([.\w]+)[ \t]+import[ \t]*(\([^)]*\)|[^\n#;]*)"
    r"|import[ \t]+([^\n#;]+))",
    re.MULTILINE,
)
_COMMENT: Final = re.compile(r"#[^\n]*")
_imports_by_digest: Final[dict[bytes, tuple[str, ...]]] = {}


def _imports(digest: bytes, text: str) -> tuple[str, ...]:
    """Return what a text may import, dots in front and all.

    Found by a pattern rather than by parsing, which would take seconds for a large package. A name
    too many does no harm.
    """
    known = _imports_by_digest.get(digest)
    if known is None:
        if len(_imports_by_digest) > MOST_MODULES:
            _imports_by_digest.clear()
        known = tuple(dict.fromkeys(_scan(text.replace("\\\n", " "))))
        _imports_by_digest[digest] = known
    return known


def _scan(text: str) -> Iterator[str]:
    for base, names, plain in _IMPORT.findall(text):
        if plain:
            yield from (words.split()[0] for words in plain.split(",") if words.split())
            continue
        yield base
        joint = "" if base.endswith(".") else "."
        for words in _COMMENT.sub("", names).strip("()").split(","):
            if words.split() and words.split()[0].isidentifier():
                yield f"{base}{joint}{words.split()[0]}"


#: Names that were found to be installed packages: that does not change.
_not_local: Final[set[str]] = set()


def _locate(name: str) -> tuple[str, bool] | None:
    """Return path of a local module, and whether it is a package, without importing anything."""
    loaded = sys.modules.get(name)
    if loaded is not None:
        path = _file_of(loaded)
        return None if path is None else (path, hasattr(loaded, "__path__"))
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names or top in _not_local:
        return None
    try:
        spec = _find(name)
    except Exception:  # a finder of somebody else's, or a damaged folder
        return None
    if spec is None:
        return None
    if is_local(spec.origin):
        return os.path.abspath(spec.origin or ""), spec.submodule_search_locations is not None
    if name == top and spec.origin is not None:
        _not_local.add(top)
    return None


def _find(name: str) -> ModuleSpec | None:
    path: Sequence[str] | None = None
    spec = None
    so_far = ""
    for word in name.split("."):
        so_far = f"{so_far}.{word}" if so_far else word
        loaded = sys.modules.get(so_far)
        if loaded is not None and so_far != name:
            path = getattr(loaded, "__path__", None)
        else:
            spec = PathFinder.find_spec(so_far, path)
            path = spec.submodule_search_locations if spec else None
        if path is None and so_far != name:
            return None
    return spec


# ---------------------------------------------------------------------------------- in a worker


class _Loader(SourceFileLoader):
    """Loads a local module from its text as it is now, and remembers which text that was."""

    digest = b""

    def get_code(self, fullname: str) -> CodeType | None:
        path = self.get_filename(fullname)
        known = _read(path)
        if known is None or not self._trusts_cache(path, known):
            data = self.get_data(path)
            self.digest = _digest(data)
            code: CodeType = self.source_to_code(data, path)
            return code
        self.digest = known.digest
        return super().get_code(fullname)

    def _trusts_cache(self, path: str, known: _File) -> bool:
        """Return whether the `.pyc`, if there is one, cannot be of an earlier text."""
        if not known.settled:
            return False
        try:
            cached = cache_from_source(path)
            written = os.stat(cached).st_mtime_ns
        except (NotImplementedError, OSError):  # there is none
            return True
        if written - known.signature[0] > SETTLED:
            return True
        with suppress(OSError):
            os.unlink(cached)  # the one that is written then can be trusted from now on
        return not os.path.exists(cached)


class _Finder:
    """Finds local modules where the sender has them."""

    def __init__(self) -> None:
        self.known: dict[str, Stamp] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        stamp = self.known.get(name)
        if stamp is not None and os.path.exists(stamp.path):
            inside = [os.path.dirname(stamp.path)] if stamp.is_package else None
            loader = _Loader(name, stamp.path)
            return spec_from_file_location(
                name, stamp.path, loader=loader, submodule_search_locations=inside
            )
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader and is_local(spec.origin):
            spec.loader = _Loader(name, spec.origin or "")
        return spec

    def invalidate_caches(self) -> None:
        """Forget what was found; the finder that this one asks has its own."""


_finder: _Finder | None = None


def watch() -> None:
    """Let local modules that are imported from now on be watched; for workers, at their start."""
    global _finder
    if _finder is not None:
        return
    # First of all: to find these folders, Python may import modules of its own, and each import
    # would ask the finder, which would ask for these folders.
    _foreign_folders()
    _finder = _Finder()
    # Just before the finder that it asks, so that those before keep their precedence.
    place = sys.meta_path.index(PathFinder) if PathFinder in sys.meta_path else len(sys.meta_path)
    sys.meta_path.insert(place, _finder)


def prepare(folders: Iterable[str], stamps: Iterable[Stamp]) -> None:
    """Make ready to load a task that refers to these local modules.

    Parameters
    ----------
    folders
        What must be on `sys.path`, in order.
    stamps
        The modules, as they were at the call.
    """
    watch()
    _add_folders(list(folders))
    stale = False
    for stamp in stamps:
        if _finder is not None:
            _finder.known[stamp.name] = stamp
        loader = _loader_of(stamp.name)
        stale = stale or (loader is not None and loader.digest != stamp.digest)
    if stale or not _all_fresh():
        _drop_all()
    importlib.invalidate_caches()


def freshen() -> None:
    """Drop the local modules when the file of any of them has changed since it was imported.

    What was looked at a moment ago is still so: an edit before a call is older than that when the
    call arrives here.
    """
    if _finder is None or time.perf_counter_ns() < _Fresh.until:
        return
    if not _all_fresh():
        _drop_all()
        importlib.invalidate_caches()
    _Fresh.until = time.perf_counter_ns() + ON_THE_WAY


def _add_folders(wanted: list[str]) -> None:
    place = 0
    for folder in wanted:
        if folder == INSTALLED:
            place = len(sys.path)
        elif folder not in sys.path:
            sys.path.insert(place, folder)
            place += 1


def _loader_of(name: str) -> _Loader | None:
    loader = getattr(getattr(sys.modules.get(name), "__spec__", None), "loader", None)
    return loader if isinstance(loader, _Loader) else None


def _loaded() -> dict[str, _Loader]:
    found = ((name, _loader_of(name)) for name in list(sys.modules))
    return {name: loader for name, loader in found if loader is not None}


class _Fresh:
    """What `_all_fresh` knew when it last looked."""

    count = 0
    files = Files(())
    #: When to look again.
    until = 0


def _all_fresh() -> bool:
    if len(sys.modules) != _Fresh.count:
        _Fresh.files = Files(
            Stamp(name, loader.path, False, loader.digest) for name, loader in _loaded().items()
        )
        _Fresh.count = len(sys.modules)
    return _Fresh.files.unchanged()


def _drop_all() -> None:
    for name in _loaded():
        sys.modules.pop(name, None)
    _Fresh.count = _Fresh.until = 0


def importing(error: BaseException) -> str | None:
    """Return the name of the module out of whose import the error came; None if of none."""
    name = None
    tb = error.__traceback__
    while tb is not None:
        if tb.tb_frame.f_code.co_name == "<module>":
            name = str(tb.tb_frame.f_globals.get("__name__"))
        tb = tb.tb_next
    return None if name == "__main__" else name
