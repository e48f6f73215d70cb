"""Makes and reads the XML elements of libvirt's documents."""

from xml.etree import ElementTree as Xml


def add_text(parent: Xml.Element, tag: str, text: str, **attributes: str) -> None:
    """Add an element that has text in it."""
    Xml.SubElement(parent, tag, attributes).text = text


def rendered(root: Xml.Element) -> str:
    """Return a document, indented."""
    Xml.indent(root)
    return str(Xml.tostring(root, encoding="unicode"))


def parsed(document: str) -> Xml.Element:
    """Parse a document of libvirt or of the CPI. Raises ParseError."""
    return Xml.fromstring(document)  # noqa: S314 (it expands no entities)
