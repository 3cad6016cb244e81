{
  description = "The practice machines of the nixa lab";

  # No inputs: this flake has the shape of a NixOS flake, but builds with a busybox alone.
  outputs = { self }:
    let
      system = "@system@";
      tools = ./bin; # a folder, since busybox goes by the name it is called with

      # One builder for all: writes the files of `files` (name → text), scripts executable,
      # with @out@ replaced by the store path of the result.
      files = name: scripts: texts:
        let
          all = scripts // texts;
          names = builtins.attrNames all;
          line = path: ''
            $b mkdir -p "$out/$($b dirname ${path})"
            $b printf '%s' "$text${toString (index path)}" | $b sed "s|@out@|$out|g" >"$out/${path}"
            ${if scripts ? ${path} then "$b chmod 755 \"$out/${path}\"" else ""}
          '';
          index = path: builtins.length (builtins.filter (other: builtins.lessThan other path) names);
        in
        derivation ({
          inherit name system;
          builder = "${tools}/busybox";
          args = [ "sh" "-euc" ("b=$builder; " + builtins.concatStringsSep "" (map line names)) ];
        } // builtins.listToAttrs (map (path: { name = "text${toString (index path)}"; value = all.${path}; }) names));

      machine = name: host:
        let
          activation = host.activation or "";
          keys = builtins.readFile ./keys/lab.pub;
          logins = builtins.listToAttrs (map (user: { name = "ssh/authorized_keys.d/${user}"; value = keys; })
            (host.users or [ "root" "admin" ]));
          etc = files "etc-${name}" { } ({ "lab-message" = "${host.message or "hello"}\n"; } // logins);
          toplevel = files "nixos-system-${name}-lab"
            {
              "activate" = builtins.replaceStrings [ "@etc@" "@activation@" ] [ "${etc}" activation ]
                (builtins.readFile ./system/activate);
              "bin/switch-to-configuration" = builtins.replaceStrings [ "@activation@" ] [ activation ]
                (builtins.readFile ./system/switch-to-configuration);
              "init" = "#!/bin/sh\nexec @out@/activate boot\n";
            }
            ({
              "system" = system;
              "nixos-version" = "26.05.lab";
              "etc/os-release" = builtins.readFile ./system/os-release;
            } // builtins.listToAttrs (map (path: { name = "etc/${path}"; value = keys; }) (builtins.attrNames logins)));
          disko = files "disko-${name}" { "disko" = builtins.readFile ./system/disko; } { };
          # The tools run the derivation itself, so it is a file and no folder.
          diskoScript = derivation {
            name = "disko-script-${name}";
            inherit system;
            builder = "${tools}/busybox";
            args = [ "sh" "-euc" "$builder cp ${disko}/disko $out; $builder chmod 755 $out" ];
          };
          pkgs = { inherit system; };
        in
        {
          inherit pkgs;
          config = {
            inherit pkgs;
            nixpkgs.hostPlatform.system = system;
            nix.settings = { substituters = [ ]; trusted-public-keys = [ ]; };
            networking.hostName = name;
            system.build = { inherit toplevel diskoScript; };
          };
        };

      # Every file in hosts/ is a machine.
      hosts = builtins.filter (file: builtins.match ".*[.]nix" file != null)
        (builtins.attrNames (builtins.readDir ./hosts));
      nameOf = file: builtins.substring 0 (builtins.stringLength file - 4) file;
    in
    {
      nixosConfigurations = builtins.listToAttrs (map
        (file: { name = nameOf file; value = machine (nameOf file) (import (./hosts + "/${file}")); })
        hosts);
    };
}
