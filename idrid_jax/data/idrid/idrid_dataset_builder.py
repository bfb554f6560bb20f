"""The TFDS builder of IDRiD, in the layout of `tfds new`. It does not import TensorFlow; TFDS does when needed."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from idrid_jax.data.preprocess import decode
from idrid_jax.data.release import (
    GRADES,
    LESIONS,
    SPLITS,
    Graded,
    Located,
    Release,
    Segmented,
    Source,
    read_mask,
    read_release,
)
from idrid_jax.errors import UserError

# First bytes of JPEG and PNG files, which TFDS can read, so their bytes are stored unchanged.
_READABLE = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")


class Builder(tfds.core.GeneratorBasedBuilder):
    """IDRiD (Porwal et al., Data 2018, 3(3):25) as released: original bytes, labels, masks and coordinates."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    Download "A. Segmentation.zip", "B. Disease Grading.zip" and "C. Localization.zip" (those that you need) from IEEE
    DataPort, https://doi.org/10.21227/H25W98 (free account; CC BY 4.0), and put them, zipped or unpacked, into
    manual_dir.
    """
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="grading", description="Part B: severity of retinopathy, risk of macular edema."),
        tfds.core.BuilderConfig(name="segmentation", description="Part A: masks of four lesions and the optic disc."),
        tfds.core.BuilderConfig(name="localization", description="Part C: centers of optic disc and fovea."),
    ]

    def __init__(self, *, release: Release | None = None, **kwargs):
        """Build an audited `release`, or by default the one in manual_dir after an audit with the default rules.

        `kwargs` are those of TFDS: data_dir, config, version.
        """
        self._release = release
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        photograph = tfds.features.Image(shape=(None, None, 3), doc="the bytes of the released file")
        features = {
            "image": photograph,
            "source_id": tfds.features.Text(doc="split and id in the release: train/IDRiD_001"),
        }
        if self.builder_config.name == "grading":
            features["grade"] = tfds.features.ClassLabel(names=GRADES, doc="severity of retinopathy, ICDR scale")
            features["macular_edema_risk"] = tfds.features.ClassLabel(num_classes=3, doc="0 to 2; -1 if not given")
        elif self.builder_config.name == "segmentation":
            mask = {
                "mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png", doc="255 inside, 0 outside"),
                "present": tfds.features.Scalar(dtype=np.bool_, doc="False if the release has no mask; it is then 0"),
            }
            features["masks"] = {lesion: mask for lesion in LESIONS}
        else:
            features["optic_disc"] = tfds.features.Tensor(shape=(2,), dtype=np.float32, doc="center (x, y), pixels")
            features["fovea"] = tfds.features.Tensor(shape=(2,), dtype=np.float32, doc="center (x, y), pixels")
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "grade") if self.builder_config.name == "grading" else None,
            homepage="https://doi.org/10.21227/H25W98",
            license="CC BY 4.0",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        if self._release is None:
            from idrid_jax.data.audit import audit  # imported late: readers of the dataset do not need it

            self._release, _ = audit(read_release(dl_manager.manual_dir))
        records = getattr(self._release, self.builder_config.name)
        if not records:
            raise UserError(
                f"{self._release.root}: has no part for the config {self.builder_config.name!r}; "
                "build another config, or add the part's zip or folder"
            )
        by_split = {split: [record for record in records if record.split == split] for split in SPLITS}
        # TFDS refuses a split without examples, which a small synthetic release may have.
        return {split: self._generate_examples(found) for split, found in by_split.items() if found}

    def _generate_examples(self, records):
        for record in records:
            key = f"{record.split}/{record.id}"
            data = record.image.read()
            yield key, {"image": io.BytesIO(_photograph(data, record.image)), "source_id": key} | _labels(record, data)


def _photograph(data: bytes, source: Source) -> bytes:
    """Return the bytes unchanged, or as a PNG of the same pixels if TFDS cannot read the format (TIFF, BMP)."""
    return data if data.startswith(_READABLE) else _png(Image.fromarray(decode(data, str(source))))


def _labels(record: Graded | Segmented | Located, data: bytes) -> dict:
    if isinstance(record, Graded):
        return {"grade": record.grade, "macular_edema_risk": record.edema}
    if isinstance(record, Located):
        return {"optic_disc": np.float32(record.disc), "fovea": np.float32(record.fovea)}
    size = _size(data, record.image)
    masks = {}
    for lesion in LESIONS:
        present = lesion in record.masks
        mask = read_mask(record.masks[lesion], size) if present else np.zeros(size, bool)
        masks[lesion] = {"mask": io.BytesIO(_png(Image.fromarray(mask))), "present": present}
    return {"masks": masks}


def _size(data: bytes, source: Source) -> tuple[int, int]:
    """Read (height, width) from the header."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.height, image.width
    except Exception:
        raise UserError(f"{source}: not an image that Pillow can read; replace the file") from None


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
