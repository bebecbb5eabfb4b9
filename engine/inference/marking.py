"""Saves generated images with metadata that says that they are synthetic.

XMP:  Iptc4xmpExt:DigitalSourceType = trainedAlgorithmicMedia, xmp:CreatorTool, dc:description
EXIF: Software and ImageDescription; PNG files hold them as tEXt chunks, GIF animations as a comment
MP4 films hold only the XMP packet.
"""

import io
import uuid
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from PIL import Image, PngImagePlugin

from engine.host import atomic_files
from engine.version import __version__

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
SOFTWARE = f"Kiln {__version__}"
# suffix -> Pillow's format, for the formats whose metadata can say that an image is synthetic
FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF"}
_SOFTWARE_TAG, _DESCRIPTION_TAG, _XMP_TAG = 0x0131, 0x010E, 700
_XMP_BOX = uuid.UUID("be7acfcb-97a9-42e8-9c71-999491e3afac").bytes  # XMP specification, part 3: MPEG-4
_XMP_PREFIX = b"http://ns.adobe.com/xap/1.0/\0"
# what stands around the XMP packet of a GIF (XMP specification, part 3): before it an application extension, after it
# bytes that lead a reader that takes the packet for sub-blocks to its end
_GIF_XMP, _GIF_XMP_END = b"\x21\xff\x0bXMP DataXMP", b"\x01" + bytes(range(255, -1, -1)) + b"\x00"


def xmp_packet(description: str) -> bytes:
    """The XMP packet (UTF-8) that says that an image is synthetic."""
    return f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    Iptc4xmpExt:DigitalSourceType={quoteattr(SOURCE_TYPE)}
    xmp:CreatorTool={quoteattr(SOFTWARE)}>
   <dc:description><rdf:Alt><rdf:li xml:lang="x-default">{escape(description)}</rdf:li></rdf:Alt></dc:description>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>""".encode()


def encode(image: Image.Image, suffix: str, description: str) -> bytes:
    """The bytes of an image file in the format of `suffix` (a key of FORMATS), marked as synthetic."""
    kind, xmp = FORMATS[suffix.lower()], xmp_packet(description)
    out = io.BytesIO()
    if kind == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_text("Software", SOFTWARE)
        text.add_text("Description", description)
        text.add_itxt("XML:com.adobe.xmp", xmp.decode())
        image.save(out, kind, pnginfo=text)
    elif kind == "TIFF":
        tags = {_SOFTWARE_TAG: SOFTWARE, _DESCRIPTION_TAG: description, _XMP_TAG: xmp}
        image.save(out, kind, compression="tiff_deflate", tiffinfo=tags)
    elif kind == "WEBP":
        image.save(out, kind, quality=95, exif=_exif(description), xmp=xmp)
    else:
        # the APP1 segment is made here, because Pillow has an option for XMP in JPEG only since version 11
        segment = _XMP_PREFIX + xmp
        extra = b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment
        image.save(out, kind, quality=95, subsampling=0, exif=_exif(description), extra=extra)
    return out.getvalue()


def encode_animation(frames: Sequence[Image.Image], milliseconds: int, description: str) -> bytes:
    """The bytes of an endless GIF, marked as synthetic; frames have one size, each is shown for `milliseconds`."""
    out = io.BytesIO()
    comment = f"{SOFTWARE}. {description}".encode()
    first, *others = frames
    first.save(out, "GIF", save_all=True, append_images=others, duration=milliseconds, loop=0, comment=comment)
    body, trailer = out.getvalue()[:-1], out.getvalue()[-1:]
    return body + _GIF_XMP + xmp_packet(description) + _GIF_XMP_END + trailer


def _exif(description: str) -> Image.Exif:
    """The EXIF tags Software and ImageDescription."""
    exif = Image.Exif()
    exif[_SOFTWARE_TAG], exif[_DESCRIPTION_TAG] = SOFTWARE, description
    return exif


def save(image: Image.Image, path: Path, description: str) -> None:
    """Write an image marked as synthetic, in the format of the suffix, atomically. Raises OSError when that fails."""
    atomic_files.write_bytes(path, encode(image, path.suffix, description))


def film_mark(description: str) -> bytes:
    """The XMP packet as a box, to be appended to an MP4 file."""
    content = _XMP_BOX + xmp_packet(description)
    return (8 + len(content)).to_bytes(4, "big") + b"uuid" + content
