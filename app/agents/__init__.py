"""The LangChain room: everything that speaks LangChain, and nothing else does."""
