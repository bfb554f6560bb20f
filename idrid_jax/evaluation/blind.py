"""A reader study: photographs and generated images in one shuffled sheet, for somebody to tell apart.

No measure knows what an ophthalmologist sees. A sheet has a row or more of each grade, as many photographs as generated
images, in an order that nobody knows who has not opened the key; what a reader answers is compared with a coin.
"""

import io
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw
from scipy.stats import binomtest

from idrid_jax.data import atomic
from idrid_jax.data.layout import GRADES
from idrid_jax.errors import UserError
from idrid_jax.generation.sampling import Sampler, check_grades, encode

SHEET, KEY, ANSWERS = "sheet.png", "key.csv", "answers.csv"
REAL, GENERATED = "real", "generated"
COLUMNS = 10
TILE = 128  # pixels a side that an image has at least, each of its own enlarged to a square
LABEL, GAP = 14, 4  # pixels: the number beneath an image, and between images


def write(
    sampler: Sampler,
    images: np.ndarray,
    grades: np.ndarray,
    ids: tuple[str, ...],
    out: Path | str,
    *,
    each: int = 10,
    seed: int = 0,
) -> Path:
    """`each` photographs and as many generated images of each grade that has photographs (in all, where `sampler` is
    unconditional).

    images uint8 [N, R, R, C], grades int [N], ids: the photographs to draw from, as the generator's size has them.
    Writes to `out`, a new or empty folder, whole or not at all: the sheet, numbered; answers.csv, to be filled in; and
    key.csv with what each is. The order is a function of `seed`.
    Raises UserError where a grade has fewer photographs than asked for, or `out` exists or cannot be written.
    """
    out = Path(out)
    rng = np.random.default_rng(seed)
    groups = [None]
    if sampler.network.conditional:
        check_grades(sampler)
        groups = [grade for grade in range(len(GRADES)) if (grades == grade).any()]
    places = [np.arange(len(grades)) if grade is None else np.flatnonzero(grades == grade) for grade in groups]
    least = min(range(len(groups)), key=lambda which: len(places[which]))
    if (most := len(places[least])) < each:  # of all groups: what is taken instead fits each of them
        whose = "the release" if groups[least] is None else f"grade {groups[least]} ({GRADES[groups[least]]})"
        raise UserError(f"--each {each}: {whose} has {most} training photographs; take {most} or fewer")
    with atomic.new_folder(out) as folder:
        rows, tiles = [], []
        for grade, mine in zip(groups, places):
            for index in rng.choice(mine, each, replace=False):
                rows.append((grade, REAL, ids[index]))
                tiles.append(images[index])
        asked = np.repeat(np.array([grade or 0 for grade in groups], np.int32), each)
        for number, image in enumerate(sampler.images(asked, seed=seed)):
            rows.append((groups[number // each], GENERATED, f"image {number} of seed {seed}"))
            tiles.append(image)
        # photographs come before generated images: shuffled within each grade
        order = np.lexsort((rng.random(len(rows)), np.tile(np.repeat(np.arange(len(groups)), each), 2)))
        key = pd.DataFrame([rows[i] for i in order], columns=["grade", "origin", "image"])
        key.insert(0, "number", np.arange(1, len(key) + 1))
        key["grade"] = key["grade"].astype("Int64")
        sheet = _sheet([tiles[i] for i in order], groups, 2 * each)
        (folder / SHEET).write_bytes(encode(np.asarray(sheet), "png"))
        key.to_csv(folder / KEY, index=False)
        key[["number", "grade"]].assign(answer="").to_csv(folder / ANSWERS, index=False)
    return out


def _sheet(tiles: list[np.ndarray], groups: list[int | None], block: int) -> Image.Image:
    """Ten images a row, numbered from 1; each grade, of `block` images, begins a row beneath its name."""
    factor = -(-TILE // tiles[0].shape[0])
    side = factor * tiles[0].shape[0]
    rows_of_block = -(-block // COLUMNS)
    heading = 0 if groups == [None] else LABEL + GAP
    block_height = heading + rows_of_block * (side + LABEL + GAP)
    picture = Image.new("RGB", (COLUMNS * (side + GAP), len(groups) * block_height), "white")
    draw = ImageDraw.Draw(picture)
    for place, tile in enumerate(tiles):
        which, inside = divmod(place, block)
        row, column = divmod(inside, COLUMNS)
        x, y = column * (side + GAP), which * block_height + heading + row * (side + LABEL + GAP)
        if not inside and heading:
            draw.text((0, which * block_height), f"grade {groups[which]} ({GRADES[groups[which]]})", "black")
        tile = np.broadcast_to(tile, (*tile.shape[:2], 3))  # grey ones, too
        picture.paste(
            Image.fromarray(np.ascontiguousarray(tile)).resize((side, side), Image.Resampling.NEAREST), (x, y)
        )
        draw.text((x, y + side + 1), str(place + 1), "black")
    return picture


def score(answers: Path | str) -> pd.DataFrame:
    """What a reader's answers are worth, from answers.csv with key.csv beside it.

    Returns, for each grade and "all": answered; right, the share that is; called_real, the share of generated images
    that were taken for photographs; p, the chance that a coin gets as many right or more (exact binomial test).
    The rows of either file may be in any order, as a spreadsheet may sort them. Raises UserError where a file is
    missing or is not such a file, their numbers differ, an answer is neither word, or there is none.
    """
    answers = Path(answers)
    given, key = _read(answers, "answer"), _read(answers.parent / KEY, "origin")
    _check_numbers(answers, given["number"], key["number"])
    given = given.set_index("number").loc[key["number"]].reset_index()
    words = given["answer"].fillna("").astype(str).str.strip().str.lower()
    for number, word in zip(key["number"], words):
        if word not in ("", REAL, GENERATED):
            raise UserError(f"{answers}: image {number}: answer {word!r}: write {REAL} or {GENERATED}, or nothing")
    told = key.assign(answer=words)[words != ""]
    if told.empty:
        raise UserError(f"{answers}: no answer: write {REAL} or {GENERATED} in the column answer")
    groups = [(f"grade {grade} ({GRADES[int(grade)]})", some) for grade, some in told.groupby("grade")]
    return pd.DataFrame([_of(name, some) for name, some in (*groups, ("all", told))]).set_index("of")


def _check_numbers(path, given: pd.Series, known: pd.Series) -> None:
    """Raises UserError, one line with all that is wrong, where the numbers given are not those known, once each."""
    wrong = {
        "is missing": known[~known.isin(given)],
        "is there more than once": given[given.duplicated() & given.isin(known)],
        f"is not in {KEY}": given[~given.isin(known)],
    }
    told = []
    for what, numbers in wrong.items():
        if unlike := list(numbers.unique()):
            more = f" (and {len(unlike) - 1} more like it)" if len(unlike) > 1 else ""
            told.append(f"number {unlike[0] or '(empty)'} {what}{more}")
    if told:
        advice = f"keep one row for each number of {KEY}, its answer empty where there is none, and no other row"
        raise UserError(f"{path}: {', '.join(told)}: {advice}")


def _of(name, told):
    right = told["answer"] == told["origin"]
    fakes = told[told["origin"] == GENERATED]
    return {
        "of": name,
        "answered": len(told),
        "right": right.mean(),
        "called_real": (fakes["answer"] == REAL).mean(),  # not a number where no generated image was answered
        "p": binomtest(int(right.sum()), len(told), 0.5, alternative="greater").pvalue,
    }


def _read(path, column) -> pd.DataFrame:
    try:
        # numbers as text: beside an empty or a wrong cell they would be no integers
        table = pd.read_csv(io.StringIO(path.read_text("utf-8-sig")), dtype={"number": str})
    except FileNotFoundError:
        raise UserError(f"{path}: is not there: idrid-jax blind sheet writes it") from None
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UserError(f"{path}: is no CSV file ({str(error).splitlines()[0]})") from error
    if missing := {"number", "grade", column} - set(table.columns):
        raise UserError(f"{path}: has no column {', '.join(sorted(missing))}: idrid-jax blind sheet writes them")
    table = table.dropna(how="all").reset_index(drop=True)  # a spreadsheet may end in rows of commas
    numbers = table["number"].fillna("").str.strip().str.removesuffix(".0")
    return table.assign(number=numbers)
