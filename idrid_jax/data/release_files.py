"""The files of a release, in folders or inside zips that stay zipped, and the search for its three parts.

To support another dataset layout, return its files as `Part`s from `find_parts` and parse its labels in `release`.
"""

import os
import re
import stat
import threading
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from urllib.parse import unquote

from idrid_jax.data import layout
from idrid_jax.errors import UserError

MAX_DEPTH = 4  # folders from PATH down to a part's "1. Original Images": around / unpacked / B.%20.. / B. ..
PART_NAME = re.compile(r"([abc])\. ?(segmentation|disease grading|locali[sz]ation)")
DOWNLOAD = "IDRiD is on IEEE DataPort, DOI 10.21227/H25W98 (CC BY 4.0): download " + ", ".join(
    f"'{name}.zip'" for name in layout.PARTS.values()
)
MIRROR = (
    "is the Kaggle mirror of IDRiD (Imagenes, idrid_labels.csv), which is not supported: it has 455 of the images, and "
    f"27 of its grades differ from the official ones; {DOWNLOAD}"
)
_open_zips = threading.local()


@dataclass(frozen=True)
class Source:
    """One file: the file at `path`, or the member of that name of the zip at `path`."""

    path: Path
    member: str | None = None

    def read(self) -> bytes:
        """Read all bytes. Thread-safe. Raises UserError for an unreadable file or a damaged zip."""
        try:
            return self.path.read_bytes() if self.member is None else _open_zip(self.path).read(self.member)
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, KeyError) as error:
            raise UserError(f"{self}: cannot be read ({_reason(error)}); download it again") from error

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}:{self.member}"


@dataclass(frozen=True)
class Part:
    """One of IDRiD's parts A, B and C: `files` are all files under `root`, by their normalized names below it."""

    letter: str
    root: Path  # inside a zip: the zip's path, then the folders inside
    container: Path  # the folder around it, common to all parts of one release
    zipped: Path | None  # the zip that it is in
    files: dict[tuple[str, ...], Source]


def normalize_name(name: str) -> str:
    """Return a file's or folder's name as IDRiD has it: mirrors keep a literal %20, and some tools double a space."""
    return " ".join(unquote(name).split())


def find_parts(path: Path) -> dict[str, Part]:
    """Find the parts of the one release at or under `path`, by letter. `release.read_release` describes `path`.

    Raises UserError for no release, several releases, the Kaggle mirror, and unreadable files.
    """
    path = Path(os.path.abspath(path))
    seen: list[str] = []  # all names on the way, to recognize the Kaggle mirror
    if path.is_dir():
        found = list(_in_folder(path, seen))
    elif path.is_file() and zipfile.is_zipfile(path):
        found = _in_zip(path, seen)
    elif path.is_file() and path.suffix.lower() == ".zip":
        raise UserError(f"{path}: not a readable zip (incomplete download?); {DOWNLOAD}")
    else:
        what = "it is neither a folder nor a zip" if path.exists() else "there is no such file or folder"
        raise UserError(f"no release at {path}: {what}; {DOWNLOAD}")
    if not found:
        if any(normalize_name(name).lower() in ("imagenes", "idrid_labels.csv") for name in (path.name, *seen)):
            raise UserError(f"{path}: {MIRROR}")
        folders = ", ".join(f"'{name}'" for name in layout.PARTS.values())
        raise UserError(
            f"no release at {path}: searched {MAX_DEPTH} folders deep for {folders} (a zip or a folder with "
            f"'{layout.IMAGES}' in it); {DOWNLOAD}"
        )
    letters = sorted({part.letter for part in found})
    return {letter: _only_candidate(path, [part for part in found if part.letter == letter]) for letter in letters}


def _only_candidate(path: Path, found: list[Part]) -> Part:
    """Return the one candidate for a part; a zip next to the folder unpacked from it counts as that folder."""
    folders = [part for part in found if not part.zipped]

    def is_unpacked(part: Part) -> bool:
        return part.zipped is not None and any(
            folder.container == part.container or folder.container.is_relative_to(part.zipped.with_suffix(""))
            for folder in folders
        )

    candidates = [part for part in found if not is_unpacked(part)]
    if len(candidates) > 1:
        first, second = sorted(candidates, key=lambda part: part.root)[:2]
        same_folder = first.container == second.container
        places = [part.zipped or (part.root if same_folder else part.container) for part in (first, second)]
        names = " and ".join(map(str, places))
        more = " ..." * (len(candidates) > 2)
        raise UserError(f"{path}: holds {len(candidates)} releases, {names}{more}; name one of them")
    return candidates[0]


def _in_folder(path: Path, seen: list[str]) -> Iterator[Part]:
    """Yield the parts under a folder, and in zips between them."""
    level, visited = [path], set()
    for _ in range(MAX_DEPTH + 1):
        below = []
        for folder in level:
            if (real := folder.resolve()) in visited:  # a symbolic link to a folder above
                continue
            visited.add(real)
            try:
                entries = sorted(entry for entry in folder.iterdir() if not _hidden(entry.name))
            except OSError as error:
                if folder == path:
                    raise UserError(f"{path}: cannot be read ({_reason(error)})") from error
                continue
            seen += [entry.name for entry in entries]
            if any(_is_part_content(entry.name) for entry in entries if entry.is_dir()):
                files = {names: Source(folder.joinpath(*raw)) for names, raw in _files(folder)}
                yield from _part(folder.parts[len(path.parts) - 1 :], path.parent, files, None)
                continue
            below += [entry for entry in entries if entry.is_dir()]
            for entry in entries:
                if entry.suffix.lower() == ".zip" and entry.is_file():
                    yield from _in_zip(entry, seen, requested=False)
        level = below


def _files(root: Path) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    def refuse(error: OSError):
        raise UserError(f"{error.filename}: cannot be read ({_reason(error)})") from error

    for folder, _, names in os.walk(root, onerror=refuse):
        inside = Path(folder).relative_to(root).parts
        for name in names:
            if not _hidden(name):
                yield tuple(map(normalize_name, (*inside, name))), (*inside, name)


def _in_zip(path: Path, seen: list[str], requested: bool = True) -> list[Part]:
    """Return the parts in one zip. A damaged zip is skipped if it was not requested and is not named like IDRiD."""
    try:
        members = [info for info in _open_zip(path).infolist() if not info.is_dir()]
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        name = normalize_name(path.name).lower()
        if not requested and not PART_NAME.match(name) and "idrid" not in name:
            return []
        raise UserError(f"{path}: not a readable zip ({_reason(error)}); download it again") from error
    roots: dict[tuple[str, ...], dict] = {}
    for info in members:
        names = tuple(info.filename.replace("\\", "/").split("/"))
        seen += names
        depth = next((i for i, name in enumerate(names[: MAX_DEPTH + 1]) if _is_part_content(name)), None)
        if depth is not None and not any(_hidden(name) for name in names if name not in ("..", ".")):
            files = roots.setdefault(names[:depth], {})
            files[tuple(map(normalize_name, names[depth:]))] = Source(path, info.filename)
    if roots or requested:
        for info in members:
            if _escapes(info):
                raise UserError(f"{path}: its member {info.filename!r} has a path outside of it; get another copy")
    return [part for names, files in roots.items() for part in _part((path.name, *names), path.parent, files, path)]


def _part(names: tuple[str, ...], parent: Path, files: dict, zipped: Path | None) -> list[Part]:
    """Return the part at parent / names, as a list, or [] if it is none of IDRiD's.

    `names` are the folders from the requested path's (or the zip's) own name down to the part's root.
    """
    letter = _letter(names, files)
    if letter is None:
        return []
    around = list(names)
    while around and (match := PART_NAME.match(normalize_name(around[-1]).lower())) and match[1].upper() == letter:
        around.pop()  # the part's own folder, which is often doubled
    if zipped and around:
        around.pop(0)  # the zip's own name is not a folder
    return [Part(letter, parent.joinpath(*names), parent.joinpath(*around), zipped, files)]


def _letter(names: tuple[str, ...], files: dict) -> str | None:
    """Identify a part by its ground truth files, or if it has none, by the nearest folder's name."""
    truths = [" / ".join(inside).lower() for inside in files if inside[0].lower().startswith("2.")]
    signs = (("A", "all segmentation"), ("B", "disease grading"), ("C", "optic disc center"), ("C", "fovea"))
    for letter, sign in signs:
        if any(sign in name for name in truths):
            return letter
    matches = [match for name in reversed(names) if (match := PART_NAME.match(normalize_name(name).lower()))]
    return matches[0][1].upper() if matches else None


def _is_part_content(name: str) -> bool:
    return normalize_name(name).lower() in {name.lower() for name in (layout.IMAGES, *layout.TRUTHS.values())}


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _escapes(info: zipfile.ZipInfo) -> bool:
    name = info.orig_filename
    link = stat.S_ISLNK(info.external_attr >> 16)
    return ".." in re.split(r"[/\\]", name) or name.startswith(("/", "\\")) or bool(PureWindowsPath(name).drive) or link


def _open_zip(path: Path) -> zipfile.ZipFile:
    """Return this thread's and process's own open zip: threads and forks would share one file position otherwise."""
    status = path.stat()
    key = (os.getpid(), status.st_mtime_ns, status.st_size)  # a replaced file is opened again
    zips = vars(_open_zips).setdefault("zips", {})
    if path not in zips or zips[path][0] != key:
        zips[path] = (key, zipfile.ZipFile(path))
    return zips[path][1]


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
