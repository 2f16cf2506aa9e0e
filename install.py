"""WebUI's hook at start: installs nothing, for ASAG needs only what every WebUI ships."""
