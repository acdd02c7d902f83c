"""The HTTP room: takes requests in and puts what came of them on the wire."""
