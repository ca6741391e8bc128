"""Where the time goes: ranges named after the model's parts, and the tools that show them (`minigpt profile`)."""
