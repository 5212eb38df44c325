"""The demo's input: pictures drawn from npm packages, and a local server in place of Wikimedia
Commons and its image sites."""
