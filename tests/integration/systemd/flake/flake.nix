{
  description = "NixOS configurations for a machine with a real systemd, without nixpkgs";

  # hosts/NAME.json describes a system: `message`; `units` (name → text); `inhibitors` (name → value);
  # `status` (what switch-to-configuration ends with instead of switching); `activation` (a line of shell);
  # `init` (the version of init's interface); `kernel` and `initrd` (their names).
  outputs = { self }:
    let
      system = "@system@";
      tools = ./bin; # a folder, since busybox goes by the name it is called with

      tree = name: files: # path → text; what starts with #! is executable
        let
          paths = builtins.attrNames files;
          index = path: builtins.length (builtins.filter (other: builtins.lessThan other path) paths);
          line = path: ''
            $b mkdir -p "$out/$($b dirname '${path}')"
            $b printf '%s' "$text${toString (index path)}" | $b sed "s|@out@|$out|g" >"$out/${path}"
            case $text${toString (index path)} in '#!'*) $b chmod 755 "$out/${path}" ;; esac
          '';
        in
        derivation ({
          inherit name system;
          builder = "${tools}/busybox";
          args = [ "sh" "-euc" ("b=$builder; " + builtins.concatStringsSep "" (map line paths)) ];
        } // builtins.listToAttrs (map (path: { name = "text${toString (index path)}"; value = files.${path}; }) paths));

      machine = name: host:
        let
          within = prefix: files: builtins.listToAttrs
            (map (file: { name = prefix + file; value = files.${file}; }) (builtins.attrNames files));
          toplevel = tree "nixos-system-${name}-test" ({
            "bin/switch-to-configuration" = builtins.replaceStrings
              [ "@status@" "@activation@" ] [ (toString (host.status or "")) (host.activation or ":") ]
              (builtins.readFile ./switch-to-configuration);
            "init" = "#!/bin/sh\nexec /usr/lib/systemd/systemd\n";
            "init-interface-version" = "systemd ${toString (host.init or 2)}\n";
            "system" = system;
            "nixos-version" = "26.05.test";
            "etc/message" = "${host.message or "hello"}\n";
            "kernel" = host.kernel or "6.12.1";
            "initrd" = host.initrd or "initrd";
            "switch-inhibitors" = builtins.toJSON (host.inhibitors or { });
          } // within "etc/systemd/system/" (host.units or { }));
          pkgs = { inherit system; };
        in
        {
          inherit pkgs;
          config = {
            inherit pkgs;
            nixpkgs.hostPlatform.system = system;
            nix.settings = { substituters = [ ]; trusted-public-keys = [ ]; };
            networking.hostName = name;
            system.build = { inherit toplevel; diskoScript = tree "disko" { "disko" = "#!/bin/sh\nexit 1\n"; }; };
          };
        };
      hosts = builtins.attrNames (builtins.readDir ./hosts);
      nameOf = file: builtins.substring 0 (builtins.stringLength file - 5) file;
    in
    {
      nixosConfigurations = builtins.listToAttrs (map
        (file: { name = nameOf file; value = machine (nameOf file) (builtins.fromJSON (builtins.readFile (./hosts + "/${file}"))); })
        hosts);
    };
}
