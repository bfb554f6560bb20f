"""Where the bytes of a release lie, in folders or in zips that stay zipped, and the search for its three parts."""

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

DEPTH = 4  # folders between PATH and a part's own "1. Original Images": around / unpacked / B.%20.. / B. ..
NAME = re.compile(r"([abc])\. ?(segmentation|disease grading|locali[sz]ation)")
WHERE = "IDRiD is on IEEE DataPort, DOI 10.21227/H25W98 (CC BY 4.0): download " + ", ".join(
    f"'{name}.zip'" for name in layout.PARTS.values()
)
MIRROR = (
    "is the Kaggle mirror of IDRiD (Imagenes, idrid_labels.csv), refused: it holds 455 of the images and 27 of its "
    f"grades differ from the official ones; {WHERE}"
)
_opened = threading.local()


@dataclass(frozen=True)
class Source:
    """Bytes of one file: at `path`, or the member of that name in the zip at `path`."""

    path: Path
    member: str | None = None

    def read(self) -> bytes:
        """All of the bytes. Safe in many threads. Raises UserError for an unreadable file or a damaged zip."""
        try:
            return self.path.read_bytes() if self.member is None else _zip(self.path).read(self.member)
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, KeyError) as error:
            raise UserError(f"{self}: cannot be read ({_reason(error)}); download it again") from error

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}:{self.member}"


@dataclass(frozen=True)
class Part:
    """One of A, B, C as found: `files` are all files under `root`, keyed by their cleaned names below it."""

    letter: str
    root: Path  # for a zip: the zip's path, then the folders inside
    container: Path  # the folder around it, which it shares with the release's other parts
    zipped: Path | None
    files: dict[tuple[str, ...], Source]


def clean(name: str) -> str:
    """A file's or folder's name as IDRiD gave it: mirrors keep a literal %20, and some tools double a space."""
    return " ".join(unquote(name).split())


def find_parts(path: Path) -> dict[str, Part]:
    """The parts of the one release at or under `path`, by letter. See `release.read_release` for what `path` can be."""
    path = Path(os.path.abspath(path))
    seen: list[str] = []  # names met on the way, to tell the mirror from nothing at all
    if path.is_dir():
        found = list(_in_folder(path, seen))
    elif path.is_file() and zipfile.is_zipfile(path):
        found = _in_zip(path, seen)
    elif path.is_file() and path.suffix.lower() == ".zip":
        raise UserError(f"{path}: not a readable zip (incomplete download?); {WHERE}")
    else:
        what = "it is neither a folder nor a zip" if path.exists() else "there is no such file or folder"
        raise UserError(f"no release at {path}: {what}; {WHERE}")
    if not found:
        if any(clean(name).lower() in ("imagenes", "idrid_labels.csv") for name in (path.name, *seen)):
            raise UserError(f"{path}: {MIRROR}")
        folders = ", ".join(f"'{name}'" for name in layout.PARTS.values())
        raise UserError(
            f"no release at {path}: looked {DEPTH} folders deep for {folders} (a zip or a folder with "
            f"'{layout.IMAGES}' in it); {WHERE}"
        )
    return {letter: _only(path, [part for part in found if part.letter == letter]) for letter in _letters(found)}


def _letters(found: list[Part]) -> list[str]:
    return sorted({part.letter for part in found})


def _only(path: Path, found: list[Part]) -> Part:
    """The one candidate for a letter; a zip beside the folder unpacked from it counts as that folder."""
    folders = [part for part in found if not part.zipped]

    def unpacked(part: Part) -> bool:
        return part.zipped is not None and any(
            folder.container == part.container or folder.container.is_relative_to(part.zipped.with_suffix(""))
            for folder in folders
        )

    left = [part for part in found if not unpacked(part)]
    if len(left) > 1:
        first, second = sorted(left, key=lambda part: part.root)[:2]
        alike = first.container == second.container
        names = " and ".join(str(part.zipped or (part.root if alike else part.container)) for part in (first, second))
        raise UserError(f"{path}: holds {len(left)} releases, {names}{' ...' * (len(left) > 2)}; name one of them")
    return left[0]


def _in_folder(path: Path, seen: list[str]) -> Iterator[Part]:
    """Parts under a folder, and in the zips met on the way."""
    level, visited = [path], set()
    for depth in range(DEPTH + 1):
        below = []
        for folder in level:
            if (real := folder.resolve()) in visited:  # a link back
                continue
            visited.add(real)
            try:
                entries = sorted(entry for entry in folder.iterdir() if not _hidden(entry.name))
            except OSError as error:
                if folder == path:
                    raise UserError(f"{path}: cannot be read ({_reason(error)})") from error
                continue
            seen += [entry.name for entry in entries]
            if any(_is_inside(entry.name) for entry in entries if entry.is_dir()):
                files = {names: Source(folder.joinpath(*raw)) for names, raw in _files(folder)}
                yield from _part(folder.parts[len(path.parts) - 1 :], path.parent, files, None)
                continue
            below += [entry for entry in entries if entry.is_dir()]
            for entry in entries:
                if entry.suffix.lower() == ".zip" and entry.is_file():
                    yield from _in_zip(entry, seen, asked=False)
        level = below


def _files(root: Path) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    def refuse(error: OSError):
        raise UserError(f"{error.filename}: cannot be read ({_reason(error)})") from error

    for folder, _, names in os.walk(root, onerror=refuse):
        inside = Path(folder).relative_to(root).parts
        for name in names:
            if not _hidden(name):
                yield tuple(map(clean, (*inside, name))), (*inside, name)


def _in_zip(path: Path, seen: list[str], asked: bool = True) -> list[Part]:
    """Parts in one zip. A damaged zip that nobody asked for, and whose name is not IDRiD's, is passed over."""
    try:
        members = [info for info in _zip(path).infolist() if not info.is_dir()]
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        if not asked and not NAME.match(clean(path.name).lower()) and "idrid" not in path.name.lower():
            return []
        raise UserError(f"{path}: not a readable zip ({_reason(error)}); download it again") from error
    roots: dict[tuple[str, ...], dict] = {}
    for info in members:
        names = tuple(info.filename.replace("\\", "/").split("/"))
        seen += names
        depth = next((i for i, name in enumerate(names[: DEPTH + 1]) if _is_inside(name)), None)
        if depth is not None and not any(_hidden(name) for name in names if name not in ("..", ".")):
            files = roots.setdefault(names[:depth], {})
            files[tuple(map(clean, names[depth:]))] = Source(path, info.filename)
    if roots or asked:
        for info in members:
            if _climbs(info):
                raise UserError(f"{path}: its member {info.filename!r} climbs out of it; refused, get another copy")
    return [part for names, files in roots.items() for part in _part((path.name, *names), path.parent, files, path)]


def _part(names: tuple[str, ...], parent: Path, files: dict, zipped: Path | None) -> list[Part]:
    """names: the folders from PATH's own (or the zip's) name down to the part's root, which lies at parent / names."""
    letter = _letter(names, files)
    if letter is None:
        return []
    around = list(names)
    while around and (match := NAME.match(clean(around[-1]).lower())) and match[1].upper() == letter:
        around.pop()  # the part's own folder, often doubled
    if zipped and around:
        around.pop(0)  # the zip's own name is no folder
    return [Part(letter, parent.joinpath(*names), parent.joinpath(*around), zipped, files)]


def _letter(names: tuple[str, ...], files: dict) -> str | None:
    """By what the part holds; where its groundtruths are missing, by the nearest folder's name."""
    truths = [" / ".join(inside).lower() for inside in files if inside[0].lower().startswith("2.")]
    signs = (("A", "all segmentation"), ("B", "disease grading"), ("C", "optic disc center"), ("C", "fovea"))
    for letter, sign in signs:
        if any(sign in name for name in truths):
            return letter
    matches = [match for name in reversed(names) if (match := NAME.match(clean(name).lower()))]
    return matches[0][1].upper() if matches else None


def _is_inside(name: str) -> bool:
    return clean(name).lower() in {name.lower() for name in (layout.IMAGES, *layout.TRUTHS.values())}


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _climbs(info: zipfile.ZipInfo) -> bool:
    name = info.orig_filename
    link = stat.S_ISLNK(info.external_attr >> 16)
    return ".." in re.split(r"[/\\]", name) or name.startswith(("/", "\\")) or bool(PureWindowsPath(name).drive) or link


def _zip(path: Path) -> zipfile.ZipFile:
    """The open zip of this thread and process: threads and forks would share one file position otherwise."""
    status = path.stat()
    key = (os.getpid(), status.st_mtime_ns, status.st_size)  # opened again when the file was replaced
    held = vars(_opened).setdefault("zips", {})
    if path not in held or held[path][0] != key:
        held[path] = (key, zipfile.ZipFile(path))
    return held[path][1]


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
