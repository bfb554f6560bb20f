"""Photographs, grades, masks and centres -> a release in IDRiD's layout, whole or not at all.

Folders, names, CSV form and mask form are the official ones (see `layout`), so that `read_release` and any tool made
for IDRiD reads what is written here.
"""

import errno
import os
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from idrid_jax.data import atomic, layout
from idrid_jax.data.masks import palette_tiff
from idrid_jax.errors import UserError

BLANK_ROWS = 5  # rows of commas that end a markup file; the official ones pad theirs to 516 lines


class ReleaseWriter:
    """Writes a release to `out`; use it as a context manager.

    Everything goes to a hidden folder beside `out`, which is renamed to `out` when the block ends well; a block that
    raises leaves nothing. `out` must not exist or be an empty folder. Parts (A, B, C) are written only when something
    was added to them; a part that is written has both splits, the other one possibly empty.

    notice: the text of README.txt in the release's root; say there what the images are (made up or real, by what).

    Raises UserError (one line) for an `out` that holds something, a folder that cannot be written, and a full disk.
    """

    def __init__(self, out: Path, notice: str):
        self.out = Path(out).absolute()
        self.notice = notice
        self._folder: Path
        self._cleaning = ExitStack()
        self._grading = {split: [] for split in layout.SPLITS}
        self._discs = {split: [] for split in layout.SPLITS}
        self._foveas = {split: [] for split in layout.SPLITS}
        self._segmented = 0

    def __enter__(self) -> "ReleaseWriter":
        with self._writing():
            if self.out.exists() and not (self.out.is_dir() and not any(self.out.iterdir())):
                raise UserError(f"{self.out}: already holds something; name a folder that does not exist, or empty it")
            self.out.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(self.out.parent, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        self._folder = self._cleaning.enter_context(atomic.partial_folder(self.out.parent))
        return self

    def __exit__(self, kind, value, traceback) -> None:
        try:
            if kind is None:
                with self._writing():
                    self._finish()
        finally:
            self._cleaning.close()

    def add_graded(self, split: str, image: bytes, grade: int, edema: int = -1, suffix: str = ".jpg") -> str:
        """Adds a photograph to part B and returns the id it was given: IDRiD_001, ... in each split.

        image: an encoded file, written untouched. grade: 0..4. edema: risk of macular oedema 0..2; -1 (unknown) is
        written as an empty cell. suffix: one of `layout.PHOTO_SUFFIXES`.
        """
        if grade not in range(len(layout.GRADES)) or edema not in (-1, *layout.EDEMA):
            raise ValueError(f"grade {grade} must be 0..4 and edema {edema} 0..2 or -1")
        rows = self._grading[split]
        name = f"IDRiD_{len(rows) + 1:03d}"
        self._photograph("B", split, name, image, suffix)
        risk = "" if edema == -1 else int(edema)
        rows.append(f"{name},{int(grade)},{risk}{layout.GRADING_PADDING[split]}")
        return name

    def add_segmented(self, split: str, image: bytes, masks: dict[str, np.ndarray], suffix: str = ".jpg") -> str:
        """Adds a photograph with its masks to part A and returns its id: IDRiD_01, ... counted over both splits.

        masks: lesion (a key of `layout.LESIONS`) -> bool [H, W]. An empty mask is written as no file, as in IDRiD. Add
        the training photographs first: the official test split's numbers go on where the training split's end.
        """
        for lesion, mask in masks.items():
            if lesion not in layout.LESIONS or mask.ndim != 2 or mask.dtype != bool:
                raise ValueError(f"mask {lesion!r} must be one of {list(layout.LESIONS)}, bool [H, W]")
        self._segmented += 1
        name = f"IDRiD_{self._segmented:02d}"
        self._photograph("A", split, name, image, suffix)
        for lesion, mask in masks.items():
            if mask.any():
                folder = f"{layout.TRUTHS['A']}/{layout.SPLIT_FOLDERS[split]}/{layout.LESIONS[lesion]}"
                self._write(f"{layout.PARTS['A']}/{folder}/{name}_{lesion}.tif", palette_tiff(mask))
        return name

    def add_located(
        self,
        split: str,
        image: bytes,
        disc: tuple[float, float],
        fovea: tuple[float, float],
        suffix: str = ".jpg",
    ) -> str:
        """Adds a photograph to part C and returns its id: IDRiD_001, ... in each split.

        disc, fovea: centres (x, y) in pixels of the image, x to the right, y down.
        """
        name = f"IDRiD_{len(self._discs[split]) + 1:03d}"
        self._photograph("C", split, name, image, suffix)
        for rows, (x, y) in ((self._discs[split], disc), (self._foveas[split], fovea)):
            rows.append(f"{name},{_number(x)},{_number(y)}{layout.MARKUP_PADDING}")
        return name

    def add_file(self, name: str, data: bytes) -> None:
        """A file of the writer's own in the release's root, which no reader looks at."""
        self._write(name, data)

    def _photograph(self, part: str, split: str, name: str, image: bytes, suffix: str) -> None:
        if suffix not in layout.PHOTO_SUFFIXES:
            raise ValueError(f"suffix {suffix!r} must be one of {layout.PHOTO_SUFFIXES}")
        self._write(f"{layout.PARTS[part]}/{layout.IMAGES}/{layout.SPLIT_FOLDERS[split]}/{name}{suffix}", image)

    def _write(self, relative: str, data: bytes) -> None:
        path = self._folder / relative
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def _csv(self, part: str, names: dict[str, str], split: str, lines: list[str]) -> None:
        text = "".join(line + "\r\n" for line in lines)
        self._write(f"{layout.PARTS[part]}/{layout.TRUTHS[part]}/{names[split]}", text.encode())

    def _finish(self) -> None:
        for split in layout.SPLITS:
            if any(self._grading.values()):
                header = layout.GRADING_HEADER + layout.GRADING_PADDING[split]
                self._csv("B", layout.GRADING_CSV, split, [header, *self._grading[split]])
            if any(self._discs.values()):
                header = layout.MARKUP_HEADER + layout.MARKUP_PADDING
                blank = [",," + layout.MARKUP_PADDING] * BLANK_ROWS
                self._csv("C", layout.DISC_CSV, split, [header, *self._discs[split], *blank])
                self._csv("C", layout.FOVEA_CSV, split, [header, *self._foveas[split], *blank])
        for images in self._folder.glob(f"*/{layout.IMAGES}"):
            for folder in layout.SPLIT_FOLDERS.values():
                (images / folder).mkdir(exist_ok=True)
        self._write("README.txt", (self.notice.rstrip() + "\n").encode())
        if not atomic.publish(self._folder, self.out):
            raise UserError(f"{self.out}: was filled by another process meanwhile; name another folder")

    @contextmanager
    def _writing(self):
        """Turns what the file system says into one line for the user."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            advice = "free some space or name another folder"
            raise UserError(f"{self.out}: cannot be written ({reason}); {advice}") from error


def _number(value: float) -> str:
    """12.0 -> "12", as the official files have it; a fraction is kept to its last digit."""
    value = float(value)
    return str(int(value)) if value.is_integer() else repr(value)
