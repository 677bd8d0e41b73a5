"""Search: a client, a server, the index of a corpus, and the back ends that rank its passages."""
