"""The agreement of people with each other on human maps, and the reading that it belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

# Spearman's split-half agreement of people on ClickMe maps (Fel et al. 2022, "Harmonizing the
# object recognition strategies of deep neural networks with humans"; also used by Feng 2025)
HUMAN_CEILING = 0.65753
# the reading of the maps behind HUMAN_CEILING (serre-lab/Harmonization, common/blur.py): pixels a
# side, kernel of a Gaussian blur, its sigma
MAP_BLUR = "64 px, 10 x 10, sigma 10"
CLICKME = "ClickMe"  # the source of maps, in run files


def is_other_ceiling(settings: dict) -> bool:
    """Whether human maps were compared over HUMAN_CEILING in a reading that it does not belong to.

    settings   of the run
    """
    return bool(settings.get("human_map")) and settings.get("human_map_blur") != MAP_BLUR


def other_ceiling_text(settings: Iterable[dict]) -> str:
    """A sentence for a caption on human maps whose ceiling is not known; "" for none.

    settings   of the runs that a figure draws
    """
    sources = {one["human_map"] for one in settings if is_other_ceiling(one)}
    if not sources:
        return ""
    return (
        f" The human ceiling of these maps ({'; '.join(sorted(sources))}) is not known: human "
        f"alignment is over {HUMAN_CEILING}, that of ClickMe's."
    )


def check_ceiling(settings: dict) -> Iterator[str]:
    """A sentence where ClickMe's maps were compared over a ceiling of another reading.

    settings   of the run
    """
    ceiling, blur = settings.get("human_ceiling"), settings.get("human_map_blur")
    if settings.get("human_map") != CLICKME or not ceiling:
        return
    if (blur, ceiling) != (MAP_BLUR, HUMAN_CEILING):
        yield (
            f"human maps read {f'with blur {blur}' if blur else 'without blur'} over a ceiling of "
            f"{ceiling}: {HUMAN_CEILING} is the ceiling of maps blurred ({MAP_BLUR}); evaluate it "
            "again with --overwrite, or report human_alignment_raw"
        )
