"""Chat models: their connections and retries, and the content of their replies."""
