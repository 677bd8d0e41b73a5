"""Settings of all tests."""

import signal

from hypothesis import settings

settings.register_profile("no_deadline", deadline=None)  # how long an example takes says how busy the machine is
settings.load_profile("no_deadline")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it puts in the background deaf to Ctrl-C; what a test interrupts would be deaf too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
