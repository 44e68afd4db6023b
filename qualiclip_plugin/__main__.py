from qualiclip_plugin.cli import main

main()
