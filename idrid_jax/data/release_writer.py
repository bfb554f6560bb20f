"""Write photographs, grades, masks and centers as a release in IDRiD's layout, completely or not at all.

Folders, names, and the form of CSV files and masks are the official ones (see `layout`), so `read_release` and any tool
made for IDRiD can read the result.
"""

from contextlib import ExitStack
from pathlib import Path

import numpy as np

from idrid_jax.data import atomic, layout
from idrid_jax.data.masks import encode_mask

BLANK_ROWS = 5  # rows of commas at the end of a markup file; the official files are padded to 516 lines


class ReleaseWriter:
    """A context manager that writes a release to `out`.

    Files go to a hidden folder next to `out`, which is renamed to `out` when the block ends; if the block raises,
    nothing is left. A part (A, B or C) is written if something was added to it, with both splits, one possibly empty.
    """

    def __init__(self, out: Path, notice: str):
        """Write to `out`, which must not exist or be an empty folder.

        `notice` becomes README.txt in the release's root; it should say what the images are and who made them.
        Entering and leaving the block raise UserError for an `out` that is not empty, a folder that cannot be written,
        and a full disk.
        """
        self.out = Path(out).absolute()
        self.notice = notice
        self._folder: Path
        self._stack = ExitStack()
        self._grading = {split: [] for split in layout.SPLITS}
        self._discs = {split: [] for split in layout.SPLITS}
        self._foveas = {split: [] for split in layout.SPLITS}
        self._segmented = 0

    def __enter__(self) -> "ReleaseWriter":
        self._folder = self._stack.enter_context(atomic.new_folder(self.out))
        return self

    def __exit__(self, *error) -> None:
        if error[0] is None:
            with self._stack:
                self._finish()
        else:
            self._stack.__exit__(*error)

    def add_graded(self, split: str, image: bytes, grade: int, edema: int = -1, suffix: str = ".jpg") -> str:
        """Add a photograph to part B and return its id: IDRiD_001, ... in each split.

        Args:
          split: "train" or "test".
          image: an encoded file, written as it is.
          grade: 0 to 4.
          edema: risk of macular edema, 0 to 2; -1 (unknown) is written as an empty cell.
          suffix: one of `layout.PHOTO_SUFFIXES`.
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
        """Add a photograph with its masks to part A and return its id: IDRiD_01, ... counted over both splits.

        `masks` maps lesions (keys of `layout.LESIONS`) to bool [H, W]. For an empty mask no file is written, as in
        IDRiD. Add the training photographs first: the numbers of the test split follow those of the training split.
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
                self._write(f"{layout.PARTS['A']}/{folder}/{name}_{lesion}.tif", encode_mask(mask))
        return name

    def add_located(
        self,
        split: str,
        image: bytes,
        disc: tuple[float, float],
        fovea: tuple[float, float],
        suffix: str = ".jpg",
    ) -> str:
        """Add a photograph to part C and return its id: IDRiD_001, ... in each split.

        `disc` and `fovea` are their centers (x, y) in pixels of the image, x to the right, y down.
        """
        name = f"IDRiD_{len(self._discs[split]) + 1:03d}"
        self._photograph("C", split, name, image, suffix)
        for rows, (x, y) in ((self._discs[split], disc), (self._foveas[split], fovea)):
            rows.append(f"{name},{_number(x)},{_number(y)}{layout.MARKUP_PADDING}")
        return name

    def add_file(self, name: str, data: bytes) -> None:
        """Add a file that is not part of IDRiD's layout to the release's root."""
        self._write(name, data)

    def _photograph(self, part: str, split: str, name: str, image: bytes, suffix: str) -> None:
        if suffix not in layout.PHOTO_SUFFIXES:
            raise ValueError(f"suffix {suffix!r} must be one of {layout.PHOTO_SUFFIXES}")
        self._write(f"{layout.PARTS[part]}/{layout.IMAGES}/{layout.SPLIT_FOLDERS[split]}/{name}{suffix}", image)

    def _write(self, relative: str, data: bytes) -> None:
        path = self._folder / relative
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


def _number(value: float) -> str:
    """Format a coordinate: 12.0 as "12", like the official files; a fraction with all its digits."""
    value = float(value)
    return str(int(value)) if value.is_integer() else repr(value)
