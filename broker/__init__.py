"""Starting and configuring an MQTT broker."""
