"""Chat templates are programs that come with models: they are compiled and run in processes that can be killed."""
