"""A sweep's table for people."""

import pandas as pd

from idrid_jax.sweep.plot import axes, held_out

SHOWN = {  # column -> caption, digits
    "kimg": ("kimg", 2),
    "images_per_s": ("images/s", 0),
    "ssim": ("SSIM", 3),
    "psnr": ("PSNR", 2),
    "ssim_nearest": ("nearest", 3),
    "ssim_among": ("among", 3),
    "ssim_excess": ("excess", 3),
    "loss_d": ("Loss_D", 3),
    "loss_g": ("Loss_G", 3),
}


def text(frame: pd.DataFrame, fields: list[str]) -> str:
    """Of `results.table`: a line for each run, what held-out photographs give, and what failed and why."""
    shown = pd.DataFrame({"run": frame.number})
    for axis in axes(frame, fields):
        shown[axis.caption] = axis.labels
    shown["status"] = frame.status
    for name, (caption, digits) in SHOWN.items():
        shown[caption] = [f"{value:.{digits}f}" if pd.notna(value) else "-" for value in frame[name]]
    lines = [shown.to_string(index=False)]
    if frame.ssim.notna().any():
        ssim, psnr = held_out(frame, "ssim_held_out", 3), held_out(frame, "psnr_held_out", 2)
        real = f" (held-out real photographs x training: {ssim}, {psnr})" if ssim else ""
        lines.append(
            f"SSIM, PSNR in dB: generated x training, means over all pairs{real};\n"
            "nearest: SSIM of each generated x its nearest training image; among: SSIM among generated;\n"
            "excess: that less among training (collapse above 0.1)."
        )
    lines += [
        f"run {row.number} ({row['name']}) {row.status}: {row.reason}" for _, row in frame.iterrows() if row.reason
    ]
    return "\n".join(lines)
