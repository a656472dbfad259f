"""Pages: one HTML file each, which needs no network; charts as SVG in the colours of the page."""
