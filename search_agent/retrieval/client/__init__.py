"""The client: many coroutines search, few requests leave, failures are tried again."""
