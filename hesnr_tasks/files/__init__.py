"""Files of others, read within bounds (`bounded`), and files of users, written whole or not at all (`atomic`)."""
