"""The two errors that have somebody to blame; anything else is our own bug and crashes."""


class ConfigError(Exception):
    """The operator's: a setting that cannot be used. The text names file, line, key and what is allowed."""


class MessageError(Exception):
    """The other end's: a message that is malformed, too large or of another version. Dropped and counted."""
