"""Notice that the image files of a run are other ones than when it was begun.

The names of images are compared as settings are; their contents are not read, which takes long.
Their sizes and times of change are cheap, and change when photographs are replaced.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from alignment_security.common.files import UserError
from alignment_security.images.image_sets import ImageSet
from alignment_security.records.run import Run


def check_image_files(run: Run, images: ImageSet) -> None:
    """Compare the image files with those of earlier sessions, and note them in the run file.

    Raises UserError where sizes differ. Other times alone are a warning: a copy has them too. So
    are other sizes after a session that an unreadable image ended: it had to be mended.
    """
    found = now = image_file_facts(images)
    known = run.info.get("image_files", {})
    if known.get("list_sha256") != now["list_sha256"]:  # a record that grows has a list of its own
        now = image_file_facts(images.take_named(set(run.rows["image_id"])))
    if known.get("list_sha256") == now["list_sha256"]:
        same_sizes = known["sizes_sha256"] == now["sizes_sha256"]
        if not same_sizes and not str(run.info.get("error")).startswith("DataError"):
            raise replaced_error(run, images)
        if known["times_sha256"] != now["times_sha256"]:
            sizes = "do not" if same_sizes else "too"
            run.warn(
                "image files were copied or changed between two sessions (their times differ, "
                f"their sizes {sizes})"
            )
    run.save(image_files=found)


def check_finished_images(run: Run, images: ImageSet) -> None:
    """Raise UserError where the images of a finished record were replaced since (other sizes)."""
    known, found = run.info.get("image_files", {}), image_file_facts(images)
    same_list = known.get("list_sha256") == found["list_sha256"]
    if same_list and known["sizes_sha256"] != found["sizes_sha256"]:
        raise replaced_error(run, images)


def replaced_error(run: Run, images: ImageSet) -> UserError:
    return UserError(
        f"{run.json}: the images of {images.name} were replaced since this record was begun (their "
        "sizes differ); bring the old ones back, or start anew with --overwrite"
    )


def image_file_facts(images: ImageSet) -> dict[str, str]:
    """Hex sha256 of the list, and of the sizes and the times (whole seconds) of its files."""
    stats = [path.stat() for path in dict.fromkeys(images.paths)]
    return {
        "list_sha256": images.list_sha256,
        "sizes_sha256": _sha256(stat.st_size for stat in stats),
        "times_sha256": _sha256(int(stat.st_mtime) for stat in stats),
    }


def _sha256(numbers: Iterable[int]) -> str:
    return hashlib.sha256("".join(f"{number}\n" for number in numbers).encode()).hexdigest()
