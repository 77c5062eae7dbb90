from hypothesis import settings

# The first example of a test pays for lazy imports; how long one takes is not what these tests are about.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
