"""A blind reader study: photographs and generated images shuffled on one sheet, for a person to tell apart.

No metric knows what an ophthalmologist sees. A sheet shows as many photographs as generated images of each grade, in an
order that only the key reveals; the reader's answers are compared with chance.
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
from idrid_jax.generation.sampling import Sampler, check_conditioned
from idrid_jax.images import encode_image

SHEET, KEY, ANSWERS = "sheet.png", "key.csv", "answers.csv"
REAL, GENERATED = "real", "generated"
COLUMNS = 10  # images per row of the sheet
MIN_TILE = 128  # pixels; smaller images are enlarged by a whole factor to at least this side
LABEL, GAP = 14, 4  # pixels: height of the number below an image, and space between images


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
    """Write the sheet, answers.csv to fill in, and key.csv with the origin of each image; return their folder.

    Args:
      sampler: the generator. If it is unconditional, the sheet has one group in place of one per grade.
      images, grades, ids: the photographs to choose from, uint8 [N, R, R, C] in the generator's size, int [N], names.
      out: a new or empty folder; it is written completely or not at all.
      each: photographs, and as many generated images, of each grade that has photographs.
      seed: determines the choice, the generated images and their order.
    Raises: UserError if a grade has fewer than `each` photographs, or `out` is not empty or cannot be written.
    """
    out = Path(out)
    rng = np.random.default_rng(seed)
    groups = {None: np.arange(len(grades))}  # grade -> indices of its photographs
    if sampler.network.conditional:
        check_conditioned(sampler)
        groups = {g: np.flatnonzero(grades == g) for g in range(len(GRADES)) if (grades == g).any()}
    smallest = min(groups, key=lambda g: len(groups[g]))
    if (most := len(groups[smallest])) < each:
        name = "the release" if smallest is None else f"grade {smallest} ({GRADES[smallest]})"
        raise UserError(f"--each {each}: {name} has {most} training photographs; choose {most} or fewer")
    with atomic.new_folder(out) as folder:
        rows, tiles = [], []
        for grade, candidates in groups.items():
            for index in rng.choice(candidates, each, replace=False):
                rows.append((grade, REAL, ids[index]))
                tiles.append(images[index])
        conditions = np.repeat(np.array([grade or 0 for grade in groups], np.int32), each)
        group_names = list(groups)
        for i, image in enumerate(sampler.images(conditions, seed=seed)):
            rows.append((group_names[i // each], GENERATED, f"image {i} of seed {seed}"))
            tiles.append(image)
        # by group, and in random order within it; both halves of `rows` have the same groups
        order = np.lexsort((rng.random(len(rows)), np.tile(np.repeat(np.arange(len(groups)), each), 2)))
        key = pd.DataFrame([rows[i] for i in order], columns=["grade", "origin", "image"])
        key.insert(0, "number", np.arange(1, len(key) + 1))
        key["grade"] = key["grade"].astype("Int64")
        sheet = _sheet([tiles[i] for i in order], group_names, 2 * each)
        (folder / SHEET).write_bytes(encode_image(np.asarray(sheet), "png"))
        key.to_csv(folder / KEY, index=False)
        key[["number", "grade"]].assign(answer="").to_csv(folder / ANSWERS, index=False)
    return out


def _sheet(tiles: list[np.ndarray], groups: list[int | None], group_size: int) -> Image.Image:
    """Arrange images by group in rows of COLUMNS, numbered from 1; each group starts on a new row below its name."""
    factor = -(-MIN_TILE // tiles[0].shape[0])
    side = factor * tiles[0].shape[0]
    heading = 0 if groups == [None] else LABEL + GAP
    group_height = heading + -(-group_size // COLUMNS) * (side + LABEL + GAP)
    sheet = Image.new("RGB", (COLUMNS * (side + GAP), len(groups) * group_height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, tile in enumerate(tiles):
        group, position = divmod(i, group_size)
        row, column = divmod(position, COLUMNS)
        x, y = column * (side + GAP), group * group_height + heading + row * (side + LABEL + GAP)
        if not position and heading:
            draw.text((0, group * group_height), f"grade {groups[group]} ({GRADES[groups[group]]})", "black")
        tile = np.ascontiguousarray(np.broadcast_to(tile, (*tile.shape[:2], 3)))  # grey to RGB
        sheet.paste(Image.fromarray(tile).resize((side, side), Image.Resampling.NEAREST), (x, y))
        draw.text((x, y + side + 1), str(i + 1), "black")
    return sheet


def score(answers: Path | str) -> pd.DataFrame:
    """Compare a reader's answers.csv with the key.csv next to it.

    Returns: a row for each grade and for "all", with the columns answered; right, the share of correct answers;
      called_real, the share of generated images that were answered "real" (NaN without such answers); p, the
      probability of as many correct answers or more by guessing (exact binomial test).
    Raises: UserError if a file is missing or malformed, their numbers differ (their order may), an answer is another
      word, or there is no answer.
    """
    answers = Path(answers)
    table, key = _read(answers, "answer"), _read(answers.parent / KEY, "origin")
    _check_numbers(answers, table["number"], key["number"])
    table = table.set_index("number").loc[key["number"]].reset_index()
    words = table["answer"].fillna("").str.strip().str.lower()
    for number, word in zip(key["number"], words):
        if word not in ("", REAL, GENERATED):
            raise UserError(f"{answers}: image {number}: answer {word!r}: write {REAL} or {GENERATED}, or nothing")
    answered = key.assign(answer=words)[words != ""]
    if answered.empty:
        raise UserError(f"{answers}: no answer: write {REAL} or {GENERATED} in the column answer")
    groups = [(f"grade {grade} ({GRADES[int(grade)]})", group) for grade, group in answered.groupby("grade")]
    return pd.DataFrame([_score(name, group) for name, group in (*groups, ("all", answered))]).set_index("images")


def _score(name, answered):
    right = answered["answer"] == answered["origin"]
    generated = answered[answered["origin"] == GENERATED]
    return {
        "images": name,
        "answered": len(answered),
        "right": right.mean(),
        "called_real": (generated["answer"] == REAL).mean(),
        "p": binomtest(int(right.sum()), len(answered), 0.5, alternative="greater").pvalue,
    }


def _check_numbers(path, numbers: pd.Series, expected: pd.Series) -> None:
    """Raise UserError, with every problem in one line, unless `numbers` are the expected ones, each once."""
    problems = {
        "is missing": expected[~expected.isin(numbers)],
        "is there more than once": numbers[numbers.duplicated() & numbers.isin(expected)],
        f"is not in {KEY}": numbers[~numbers.isin(expected)],
    }
    messages = []
    for problem, wrong in problems.items():
        if wrong := list(wrong.unique()):
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            messages.append(f"number {wrong[0] or '(empty)'} {problem}{more}")
    if messages:
        advice = f"keep exactly one row for each number of {KEY}; without an answer its cell is empty"
        raise UserError(f"{path}: {', '.join(messages)}: {advice}")


def _read(path, column) -> pd.DataFrame:
    """Read a CSV file that has the columns number, grade and `column`, as a spreadsheet may have saved it."""
    try:
        # as text: with empty or malformed cells in the column, pandas would read floats
        table = pd.read_csv(io.StringIO(path.read_text("utf-8-sig")), dtype={"number": str, column: str})
    except FileNotFoundError:
        raise UserError(f"{path}: no such file: idrid-jax blind sheet writes it") from None
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UserError(f"{path}: not a CSV file ({str(error).splitlines()[0]})") from error
    if missing := {"number", "grade", column} - set(table.columns):
        raise UserError(f"{path}: has no column {', '.join(sorted(missing))}: idrid-jax blind sheet writes them")
    table = table.dropna(how="all").reset_index(drop=True)  # a spreadsheet may end in rows of commas
    return table.assign(number=table["number"].fillna("").str.strip().str.removesuffix(".0"))
