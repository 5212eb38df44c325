"""What holds for every test."""

import signal

from hypothesis import settings

# a busy machine is slow at times, and no test is about time
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")

# A run that a shell put into the background ignores SIGINT, and so would every process that a test
# starts: tests of Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
