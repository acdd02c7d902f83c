"""Watchkeeper serves LangChain agents over HTTP and keeps watch over them in production."""
