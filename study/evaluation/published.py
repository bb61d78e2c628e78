"""Published results, shown beside ours: unranked, marked with who reported them, never compared by an interval."""

from dataclasses import dataclass

from study.evaluation.leaderboard import Row, h_of_means

SRE_ARTICLE = "published: SRE-CLIP Adapter, arXiv 2510.21808 (micro or per class is not stated)"


PVA_ARTICLE = "published: PVA, ECCV 2024"


PROMPTSRC = "published: repository of PromptSRC (Khattak et al., ICCV 2023); H is that of the averages"


MEAN_OF_11 = "mean of the 11 CoOp sets"


MEAN_OF_10 = "mean of the 10 sets other than ImageNet"


COOP_SETS = "caltech101 oxford_pets stanford_cars flowers102 food101 fgvc_aircraft sun397 dtd eurosat ucf101".split()


@dataclass(frozen=True, kw_only=True)
class Published:
    """Accuracies as printed, in percent."""

    benchmark: str
    """What it was measured on."""
    method: str
    """Method's name."""
    source: str
    """Who reported it."""
    seen: float | None = None
    """Accuracy on seen (base) classes."""
    unseen: float | None = None
    """Accuracy on unseen (novel) classes."""
    h: float | None = None
    """Their harmonic mean."""

    def row(self) -> Row:
        """Return the result as a row of the leaderboard."""
        known, unknown, h = (None if v is None else v / 100 for v in (self.seen, self.unseen, self.h))
        return Row(
            method=self.method,
            config_id="",
            select="",
            benchmark=self.benchmark,
            clip="",
            feature_fingerprint="",
            test_known_micro=known,
            test_unknown_micro=unknown,
            test_h_mean=h,
            test_h_of_means=h_of_means(known, unknown),
            source=self.source,
        )


BASE_TO_NOVEL = (
    Published(benchmark=MEAN_OF_11, method="CLIP", seen=69.34, unseen=74.22, h=71.70, source=PROMPTSRC),
    Published(benchmark=MEAN_OF_11, method="CoOp", seen=82.69, unseen=63.22, h=71.66, source=PROMPTSRC),
    Published(benchmark=MEAN_OF_11, method="CoCoOp", seen=80.47, unseen=71.69, h=75.83, source=PROMPTSRC),
    Published(benchmark=MEAN_OF_11, method="MaPLe", seen=82.28, unseen=75.14, h=78.55, source=PROMPTSRC),
    Published(benchmark=MEAN_OF_11, method="PromptSRC", seen=84.26, unseen=76.10, h=79.97, source=PROMPTSRC),
    Published(benchmark=MEAN_OF_11, method="PVA", seen=80.2, unseen=74.6, h=77.3, source=PVA_ARTICLE),
)


CROSS_DATASET = (
    Published(benchmark=MEAN_OF_10, method="CoOp", unseen=63.88, source=PROMPTSRC),
    Published(benchmark=MEAN_OF_10, method="CoCoOp", unseen=65.74, source=PROMPTSRC),
    Published(benchmark=MEAN_OF_10, method="MaPLe", unseen=66.30, source=PROMPTSRC),
    Published(benchmark=MEAN_OF_10, method="PromptSRC", unseen=65.81, source=PROMPTSRC),
)


PVA_ON_IMAGENET = Published(benchmark="imagenet", method="PVA", seen=77.5, unseen=71.8, h=74.5, source=PVA_ARTICLE)


ON_BENCHMARK: dict[str, tuple[Published, ...]] = {
    "i2awa": (Published(benchmark="i2awa", method="SRE-CLIP Adapter", unseen=98.4, source=SRE_ARTICLE),),
    "imagenet": (PVA_ON_IMAGENET, *BASE_TO_NOVEL),
    **{name: BASE_TO_NOVEL for name in COOP_SETS},
    **{f"imagenet-to-{name}": CROSS_DATASET for name in COOP_SETS},
}
"""By benchmark. Only numbers that were read in their source stand here."""


def published_rows(benchmark: str) -> list[Row]:
    """Return published results on a benchmark (its name with or without options), as rows without rank."""
    return [result.row() for result in ON_BENCHMARK.get(benchmark.partition(":")[0], ())]
