"""What the VQ-VAE's theory says, shown on small models: collapse, the bound, the embedding space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.autoencoders.discrete import require_codes
from models.data import some_rows, to_float
from models.evaluation.exact import MOST_MAPS, count_maps, exact_likelihood
from models.evaluation.latents import ACTIVE_VARIANCE, LatentUse, latent_use
from models.evaluation.pictures import legend_below, new_figure, save_figure
from models.evaluation.tables import Row
from models.studies.embedding import embedding_space, gradient_steps
from models.studies.runner import Runner

DECODERS = ("independent", "autoregressive")
BETA = {"vae": 1.0, "vqvae": 0.25}  # of the ELBO, and the paper's weight of the commitment loss
SUMMED_IMAGES = 100  # for which all maps are summed over
DRAWN_IMAGES = 50  # whose encoder outputs are drawn


def posterior_collapse(runner: Runner, changes: Mapping[str, Any]) -> None:
    """Both models with both decoders: what the latents carry, as ``collapse.md`` and ``collapse.png``.

    changes: to the study's settings, as in the functions below.
    """
    rows: list[Row] = []
    uses: dict[str, LatentUse] = {}
    for model, beta in BETA.items():
        for decoder in DECODERS:
            settings = _settings(runner, changes, model=model, beta=beta, decoder=decoder)
            trained = runner.train(f"collapse-{model}-{decoder}", **settings)
            use = latent_use(trained.model, runner.data.test)
            metrics = runner.evaluate(trained)
            uses[f"{model}, {decoder}"] = use
            kl = {"KL": float(use.kl.sum()), "largest KL": float(use.kl.max())} if len(use.kl) else {}
            units = {} if use.active_units is None else {"active units": use.active_units}
            rows.append(
                {
                    "model": model,
                    "decoder": decoder,
                    **kl,
                    **units,
                    "perplexity of codes": metrics.get("perplexity", ""),
                    "nats lost with another's latents": use.nats_lost,
                    "bits/dim": metrics.get("bits_per_dim", metrics.get("bits_per_dim_uniform", "")),
                }
            )
    runner.write_table(
        "collapse",
        rows,
        f"Test split of {runner.data_name}. KL: of q(z | x) from the prior, in nats an image; largest: of a "
        f"dimension. Active: units of {runner.config.latent_dim} whose mean varies by more than "
        f"{ACTIVE_VARIANCE}. Nats by which log p(x | z) falls when z is that of another image: near 0 where "
        f"the decoder does without z. bits/dim of the VQ-VAEs with equally likely codes.",
    )
    figure, (left, right) = new_figure(2, width=5)
    lines = {}
    for number, (name, use) in enumerate(uses.items()):
        if len(use.kl):
            places = range(1, len(use.kl) + 1)
            ordered = use.kl.sort(descending=True).values
            (lines[name],) = left.plot(places, ordered, "o-", markersize=4, color=f"C{number}")
        right.bar(name.replace(", ", "\n"), use.nats_lost, color=f"C{number}")
    left.set(title="KL of each dimension", xlabel="dimension, largest first", ylabel="nats")
    right.set(title="lost with another image's latents", ylabel="nats an image")
    right.tick_params(axis="x", labelsize="x-small")
    legend_below(figure, lines)
    save_figure(figure, runner.folder / "collapse.png", runner.caption("test", "beta"))


def likelihood_bound(runner: Runner, changes: Mapping[str, Any], prior: Mapping[str, Any]) -> None:
    """log p(x), summed over all maps, against log p(x | z_q) p(z_q): ``bound.md`` and ``bound.png``.

    prior: the settings of the prior over the codes.
    """
    settings = _settings(runner, changes, model="vqvae", beta=BETA["vqvae"], likelihood="logistic")
    trained = runner.train("few-maps", **settings)
    model = require_codes(trained.model)
    maps = count_maps(model, runner.data.size)
    if maps > MOST_MAPS:
        runner.say(f"no sum over code maps: images of {runner.data.name} have {maps} of them")
        return
    _, priors = runner.train_priors(trained, "few-maps-prior", **prior)
    rows_of = some_rows(len(runner.data.test), SUMMED_IMAGES)
    x = to_float(runner.data.test.batch(rows_of).to(runner.device))
    rows: list[Row] = []
    figure, axes = new_figure(2, width=4.4, height=4)
    for axis, (name, used) in zip(axes, {"trained prior": priors, "uniform prior": []}.items(), strict=True):
        result = exact_likelihood(model, x, used)
        gap = result.log_prob - result.encoded
        rows.append(
            {
                "prior": name,
                "code maps": maps,
                "log p(x)": float(result.log_prob.mean()),
                "log p(x | z_q) p(z_q)": float(result.encoded.mean()),
                "difference, nats": float(gap.mean()),
                "largest": float(gap.max()),
                "p(z_q | x)": float((-gap).exp().mean()),
                "z_q is the likeliest map": float((result.encoded >= result.best - 1e-4).double().mean()),
            }
        )
        axis.scatter(result.log_prob.cpu(), result.encoded.cpu(), s=9)
        ends = [float(result.encoded.min()), float(result.log_prob.max())]
        axis.plot(ends, ends, color="0.5", linewidth=0.8)
        axis.set(title=name, xlabel="log p(x), nats an image", ylabel="log p(x | z_q) p(z_q)")
    runner.write_table(
        "bound",
        rows,
        f"Means over {len(x)} images of the test split of {runner.data_name}, in nats an image. The paper "
        f"takes log p(x | z_q) p(z_q), of the codes that the encoder chooses, for log p(x), which is never "
        f"lower; here log p(x) is the sum over all maps of codes.",
    )
    varied = ("beta", "codebook_size", "embedding_dim")
    save_figure(figure, runner.folder / "bound.png", runner.caption("test", *varied))


def embedding_picture(runner: Runner, changes: Mapping[str, Any]) -> None:
    """The space of two-dimensional codes, the encoder's outputs and their gradients: ``embedding.png``."""
    settings = _settings(runner, changes, model="vqvae", beta=BETA["vqvae"])
    model: Any = runner.train("two-dimensions", **settings).model.eval()
    images = runner.data.test.batch(some_rows(len(runner.data.test), DRAWN_IMAGES))
    steps = gradient_steps(model, to_float(images.to(runner.device)))
    share = float((steps.codes_then != steps.codes).double().mean())
    size = settings["codebook_size"]
    caption = (
        f"{runner.caption('test', 'beta', 'codebook_size', 'embedding_dim')}, K = {size}, D = 2; "
        f"a step of this size takes {share:.0%} of the outputs into another cell"
    )
    embedding_space(runner.folder / "embedding.png", model, steps, caption)


def _settings(runner: Runner, changes: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """``changes`` without what an option of the study sets, and ``more``."""
    given = {name for name in ("epochs", "batch_size") if getattr(runner.options, name) is not None}
    return {name: value for name, value in changes.items() if name not in given} | more
