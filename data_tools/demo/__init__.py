"""The demo's input: a corpus drawn from npm packages, and a local server that stands in for
Wikimedia Commons and the sites its pictures lie on."""
