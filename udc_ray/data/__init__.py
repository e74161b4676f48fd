"""Images: data sets, domains, and the under-display camera simulator."""
