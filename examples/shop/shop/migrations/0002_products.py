from django.db import migrations

PRODUCTS = [("Celeriac, 1 kg", "2.40", 500), ("Roots: a cookbook", "24.90", 40), ("Peeler", "7.50", 120)]


def add_products(apps, schema_editor):
    Product = apps.get_model("shop", "Product")
    Product.objects.bulk_create(Product(name=name, price=price, stock=stock) for name, price, stock in PRODUCTS)


class Migration(migrations.Migration):
    dependencies = [("shop", "0001_initial")]
    operations = [migrations.RunPython(add_products, migrations.RunPython.noop)]
