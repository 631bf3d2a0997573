"""Captions in XMP sidecars: dc:description, everything else in the file left as it is.

Form: Adobe's XMP specification, part 1, section 7 (RDF/XML) and 8.3 (Dublin Core).
"""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET

from llava_cli.errors import DataError

X, RDF, DC = (
    "adobe:ns:meta/",
    "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "http://purl.org/dc/elements/1.1/",
)
LANG = "{http://www.w3.org/XML/1998/namespace}lang"
_BEGIN = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
_END = '\n<?xpacket end="w"?>\n'
MAX_BYTES = 16 * 1024 * 1024


def read_description(data: bytes) -> str:
    """The caption in a sidecar; empty where it has none. DataError for what is no XMP."""
    found = _default_text(_parse(data))
    return "" if found is None else (found.text or "").strip()


def with_description(data: bytes | None, caption: str) -> bytes:
    """A sidecar with this caption: the given one changed, or a new one."""
    root = _empty() if data is None else _parse(data)
    _make_default_text(root).text = caption
    body = ET.tostring(root, encoding="unicode")
    return (_BEGIN + body + _END).encode("utf-8")


def _parse(data: bytes) -> ET.Element:
    """The x:xmpmeta or rdf:RDF element; prefixes are remembered for writing."""
    if len(data) > MAX_BYTES:
        raise DataError("the sidecar is larger than 16 MiB", "is it XMP?")
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise DataError("the sidecar declares entities, which XMP has no use for", "remove them")
    try:
        for _, (prefix, uri) in ET.iterparse(io.BytesIO(data), ["start-ns"]):
            if prefix and not prefix.startswith("ns"):
                ET.register_namespace(prefix, uri)
        root = ET.fromstring(data)
    except (ET.ParseError, ValueError, LookupError) as error:
        raise DataError(f"the sidecar is not valid XML: {error}", "repair or remove it") from error
    if root.tag not in (f"{{{X}}}xmpmeta", f"{{{RDF}}}RDF"):
        raise DataError("the sidecar is XML, but no XMP", "move it away")
    return root


def _empty() -> ET.Element:
    for prefix, uri in (("x", X), ("rdf", RDF), ("dc", DC)):
        ET.register_namespace(prefix, uri)
    root = ET.Element(f"{{{X}}}xmpmeta")
    ET.SubElement(root, f"{{{RDF}}}RDF")
    return root


def _default_text(root: ET.Element) -> ET.Element | None:
    """The rdf:li of the description that is meant for everybody, else the first."""
    items = root.findall(f".//{{{DC}}}description/{{{RDF}}}Alt/{{{RDF}}}li")
    default = (item for item in items if item.get(LANG) == "x-default")
    return next(default, items[0] if items else None)


def _make_default_text(root: ET.Element) -> ET.Element:
    found = _default_text(root)
    if found is not None:
        return found
    ET.register_namespace("dc", DC)
    rdf = root if root.tag == f"{{{RDF}}}RDF" else root.find(f"{{{RDF}}}RDF")
    if rdf is None:
        rdf = ET.SubElement(root, f"{{{RDF}}}RDF")
    about = {f"{{{RDF}}}about": ""}
    description = rdf.find(f"{{{RDF}}}Description")
    if description is None:
        description = ET.SubElement(rdf, f"{{{RDF}}}Description", about)
    old = description.find(f"{{{DC}}}description")
    if old is not None:
        description.remove(old)
    holder = ET.SubElement(description, f"{{{DC}}}description")
    return ET.SubElement(
        ET.SubElement(holder, f"{{{RDF}}}Alt"), f"{{{RDF}}}li", {LANG: "x-default"}
    )
