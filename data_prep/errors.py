"""The one exception for mistakes a user can mend."""


class UserError(ValueError):
    """A mistake in what the user gave: the message names the option or file, the rule and the value."""
