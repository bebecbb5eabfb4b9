"""What `kiln data validate` tells of a data set: counts, sizes, formats, landmarks, duplicates, quarantine."""

from collections import Counter, defaultdict
from typing import Any

import numpy as np

from engine.data.dataset import ImageSet
from engine.data.landmarks import MIRROR_ORDERS, turned_text
from engine.host.terminal import printable

_SHOWN = 20  # names listed before "... and N more"


def inventory(images: ImageSet) -> dict[str, Any]:
    """All that is known of an image set, as plain JSON values."""
    by_content: dict[str, list[str]] = defaultdict(list)
    for record in images.records:
        by_content[record.sha256].append(record.name)
    return {
        "path": str(images.root),
        "count": len(images),
        "digest": images.digest if len(images) else None,
        "bytes": sum(record.size for record in images.records),
        "sizes": _sizes(images.sizes),
        "formats": dict(Counter(record.format for record in images.records).most_common()),
        "modes": dict(Counter(record.mode for record in images.records).most_common()),
        "converted": [{"file": record.name, "reason": record.convert} for record in images.records if record.convert],
        "layout": images.listing.layout,
        "landmarks": _landmarks(images),
        "splits": dict(Counter(images.splits)) if images.splits else {},
        "clips": _clips(images.clips),
        "pairs": None if images.pairs is None else _pairs(images),
        "identities": 0 if images.identities is None else len(np.unique(images.identities)),
        "attributes": {name: int(has.sum()) for name, has in images.attributes.items()},
        "duplicates": [names for names in by_content.values() if len(names) > 1],
        "quarantined": [{"file": name, "reason": reason} for name, reason in images.quarantined],
        "ignored_files": images.listing.ignored,
        "unused_tables": [{"file": name, "reason": reason} for name, reason in images.listing.unused],
        "sets_inside": images.listing.nested,
        "zips_inside": images.listing.archives,
    }


def as_text(facts: dict[str, Any]) -> str:
    """What `inventory` returned, as lines to read."""
    lines = [f"{facts['path']}: {facts['count']:,} usable images, {facts['bytes'] / 1e6:,.1f} MB"]
    if sizes := facts["sizes"]:
        most = f"{sizes['most_common'][0]}x{sizes['most_common'][1]}"
        spread = f", most often {most}; shorter side {sizes['shorter_side_min']} to {sizes['shorter_side_max']} pixels"
        lines.append(
            f"  sizes        {sizes['distinct']} different{spread}"
            if sizes["distinct"] > 1
            else f"  sizes        {most}"
        )
        lines.append(f"  formats      {_counts(facts['formats'])}")
        lines.append(f"  modes        {_counts(facts['modes'])}")
    lines.append(f"  landmarks    {_landmark_text(facts)}")
    if turned := facts["landmarks"]["images_turned"]:
        lines.append(f"  note         {turned_text(turned)}")
    lines += _structure(facts)
    if facts["converted"]:
        reasons = Counter(entry["reason"] for entry in facts["converted"])
        lines.append(f"  converted    {len(facts['converted']):,} read through Pillow first: {_counts(reasons)}")
    if groups := facts["duplicates"]:
        copies = sum(len(group) - 1 for group in groups)
        lines.append(f"  duplicates   {copies:,} files have the content of another one:")
        lines += _listed([" = ".join(group) for group in groups])
    if facts["ignored_files"]:
        lines.append(f"  ignored      {facts['ignored_files']:,} other files")
    if facts["unused_tables"]:
        lines.append(f"  not used     {unused_text([tuple(entry.values()) for entry in facts['unused_tables']])}")
    if facts["sets_inside"]:
        lines.append(f"  note         for landmarks give one of the sets inside: {', '.join(facts['sets_inside'])}")
    if facts["zips_inside"]:
        first, *others = facts["zips_inside"]
        rest = f" and {len(others):,} more" if others else ""
        lines.append(f"  note         zips inside are not opened: {first}{rest}")
    if facts["quarantined"]:
        lines.append(f"  quarantined  {len(facts['quarantined']):,} files, left out of training:")
        lines += _listed([f"{entry['file']}: {entry['reason']}" for entry in facts["quarantined"]])
    if facts["digest"]:
        lines.append(f"  digest       {facts['digest']}")
    return "\n".join(map(printable, lines))  # a line end in a name would make it two lines


def unused_text(unused: list[tuple[str, str]]) -> str:
    """(name, reason) of tables and arrays that are not used, as one line."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for name, reason in unused:
        by_reason[reason].append(name)
    return "; ".join(f"{_some(names)}: {reason}" for reason, names in by_reason.items())


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _sizes(sizes: np.ndarray) -> dict[str, Any]:
    if not len(sizes):
        return {}
    counts = Counter(map(tuple, sizes.tolist()))
    shorter = sizes.min(axis=1)
    return {
        "distinct": len(counts),
        "most_common": list(counts.most_common(1)[0][0]),
        "shorter_side_min": int(shorter.min()),
        "shorter_side_max": int(shorter.max()),
    }


def _landmarks(images: ImageSet) -> dict[str, int]:
    points = images.listing.landmarks
    outside = 0
    for record in images.records:
        if record.name in points:
            x, y = points[record.name][np.isfinite(points[record.name]).all(axis=1)].T
            inside = (x >= -0.5) & (y >= -0.5) & (x <= record.width - 0.5) & (y <= record.height - 0.5)
            outside += not inside.all()
    known = [points[record.name] for record in images.records if record.name in points]
    return {
        "images": len(known),
        "points": images.listing.points if known else 0,
        "missing_points": int(sum(np.isnan(marks[:, 0]).sum() for marks in known)),
        "images_with_points_outside": outside,
        "images_turned": sum(record.orientation > 1 for record in images.records if record.name in points),
    }


def _clips(clips: np.ndarray | None) -> dict[str, int] | None:
    if clips is None:
        return None
    lengths = np.bincount(clips[clips >= 0])
    return {
        "count": len(lengths),
        "shortest": int(lengths.min()),
        "longest": int(lengths.max()),
        "images_in_none": int((clips < 0).sum()),
    }


def _pairs(images: ImageSet) -> dict[str, int]:
    return {
        "count": len(images.pairs),
        "unusable": len(images.listing.pairs) - len(images.pairs),
        "images_in_none": len(images) - len(np.unique(images.pairs)),
    }


def _structure(facts: dict[str, Any]) -> list[str]:
    """Lines on layout, splits, clips, pairs, identities and attributes, where the set has them."""
    lines = []
    if facts["layout"] != "images":
        lines.append(f"  layout       {facts['layout']}")
    if facts["splits"]:
        lines.append(f"  splits       {_counts({name or '(none)': n for name, n in facts['splits'].items()})}")
    if clips := facts["clips"]:
        spread = (
            f"{clips['shortest']} to {clips['longest']}" if clips["shortest"] < clips["longest"] else clips["longest"]
        )
        lines.append(
            f"  clips        {clips['count']:,} of {spread} frames; {clips['images_in_none']:,} images in none"
        )
    if pairs := facts["pairs"]:
        unusable = f"; {pairs['unusable']:,} more lack an image" if pairs["unusable"] else ""
        lines.append(f"  pairs        {pairs['count']:,}{unusable}; {pairs['images_in_none']:,} images in none")
    if facts["identities"]:
        lines.append(f"  identities   {facts['identities']:,}")
    if facts["attributes"]:
        lines.append(f"  attributes   {_counts(facts['attributes'])}")
    return lines


def _landmark_text(facts: dict[str, Any]) -> str:
    landmarks = facts["landmarks"]
    if not landmarks["images"]:
        return "none"
    who = (
        "all images"
        if landmarks["images"] == facts["count"]
        else f"{landmarks['images']:,} of {facts['count']:,} images"
    )
    outside = landmarks["images_with_points_outside"]
    text = f"{landmarks['points']} for {who}"
    if landmarks["points"] not in MIRROR_ORDERS:
        text += f" (training uses {' or '.join(map(str, MIRROR_ORDERS))})"
    if landmarks["missing_points"]:
        text += f"; {landmarks['missing_points']:,} points missing"
    return text + (f"; some lie outside the image in {outside:,} of them" if outside else "")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _listed(lines: list[str]) -> list[str]:
    shown = [f"    {line}" for line in lines[:_SHOWN]]
    return shown + ([f"    ... and {len(lines) - _SHOWN:,} more (--json has them all)"] if len(lines) > _SHOWN else [])
