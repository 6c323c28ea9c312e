"""Identity providers: who signs tokens, and what their claims mean here."""
