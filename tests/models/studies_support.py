"""What makes each study small enough for a test, and what it must leave."""

from __future__ import annotations

SMALLEST = {"hidden": 8, "embedding_dim": 4, "codebook_size": 8, "epochs": 2, "channels_vae": (4, 4, 4, 4)}
QUICK_PRIOR = {"prior": "transformer", "width": 8, "layers": 1, "heads": 2, "epochs": 1}
# What makes a study short, the files it must leave, and the rows of its first table.
CASES: dict[str, tuple[dict[str, object], set[str], int]] = {
    "kaokore-vqvae2": (
        {"PRIORS": {"small": QUICK_PRIOR}},
        {
            *("losses.md", "slower.md", "curves.png", "reconstructions.png", "tsne.png"),
            *("samples.png", "samples.md"),
        },
        2,
    ),
    "cifar-vae-vqvae": (
        {"BATCH_SIZES": {"small": (32, 64)}},
        {
            *("ssim.md", "ssim.csv", "ssim.png", "nmse.png", "loss.png", "reconstructions.png"),
            *("training.csv", "training-loss.png", "samples-vae.png"),
        },
        4,
    ),
    "celeba-sweep": (
        {
            "GRIDS": {"small": {"beta": (0.25,), "lr": (1e-2, 1e-3), "codebook_size": (8,)}},
            "LONGER": {"small": 6},
        },
        {
            "sweep.md",
            "sweep.csv",
            "iterations.md",
            "published.png",
            "best.md",
            "best.png",
            "over-lr.png",
            "over-beta.png",
            "reconstructions.png",
        },
        2,
    ),
    "mnist-transformer": (
        {"PRIORS": {"small": QUICK_PRIOR}, "VARIANTS": {"small": {"downscale": (4, 16)}}},
        {"variants.md", "variants.csv", "priors.png", "reconstructions.png", "classes.md"},
        3,
    ),
    "likelihood": (
        {
            "PRIORS": {"small": QUICK_PRIOR},
            "LIKELIHOODS": {"small": ("gaussian",)},
            "COLLAPSE": {"small": {"likelihood": "logistic", "decoder_width": 4, "decoder_layers": 1}},
            "FEW_MAPS": {"small": {"downscale": 4, "codebook_size": 3}},
        },
        {
            *("bits.md", "bits.csv", "bits.png", "reconstructions.png"),
            *("collapse.md", "collapse.png", "bound.md", "bound.png", "embedding.png"),
        },
        2,
    ),
}
